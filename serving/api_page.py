"""The page /docs: what the paths of the server take, with commands to try; without scripts of other sites."""

import html
import json
import shlex
from typing import Any
from urllib.parse import urlencode

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>RecGPT: paths of the server</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="page.css">
<main class="text">
<h1>Paths of the server</h1>
<p>The same for programs: <a href="openapi.json">openapi.json</a>. For a person: <a href="./">the page</a>.
<p>What is wrong with a request is said in one sentence: <code>{"error": "…"}</code>.
"""


def api_page(schema: dict[str, Any], address: str) -> str:
    """The page of an OpenAPI schema, for a server at an address, such as http://localhost:8000."""
    parts = [HEAD]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            title, said = f"{method.upper()} {path}", operation["description"]
            parts += ["<h2>", html.escape(title), "</h2>\n<p>", html.escape(said), "\n<pre><code>"]
            parts += [html.escape(curl(schema, address + path, operation)), "</code></pre>\n"]
            if taken := ", ".join(f"{name}{default(about)}" for name, about in fields(schema, operation).items()):
                parts += ["<p class=hint>It takes ", html.escape(taken), ".\n"]
    return "".join(parts) + "</main>\n</html>\n"


def curl(schema: dict[str, Any], address: str, operation: dict[str, Any]) -> str:
    """A command that calls the address of a path with the examples of the schema."""
    examples = {name: about["examples"][0] for name, about in fields(schema, operation).items() if "examples" in about}
    asked = {} if "requestBody" in operation else examples
    words = ["curl", address + (f"?{urlencode(asked)}" if asked else "")]
    if "security" in operation:
        words += ["--header", "Authorization: Bearer TOKEN"]
    if "requestBody" in operation:
        words += ["--json", json.dumps(examples)]
    return shlex.join(words)


def fields(schema: dict[str, Any], operation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a path takes, in its address or its body: name -> schema."""
    if "requestBody" not in operation:
        return {one["name"]: one["schema"] for one in operation.get("parameters", ())}
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return schema["components"]["schemas"][name]["properties"]


def default(about: dict[str, Any]) -> str:
    """The default of a field, as it is written in JSON, where it has one."""
    return f" = {json.dumps(about['default'])}" if "default" in about else ""
