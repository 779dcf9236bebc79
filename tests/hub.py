"""A stand-in for the Hub on this machine, for the real huggingface_hub client: listings, files, redirects, uploads."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000  # bytes; from here on a file has a SHA-256, as the Hub's large files have


class Asked(NamedTuple):
    """One request for a file's content."""

    path: str
    start: int | None  # of the range asked for; None is the whole file


class StandInHub(ThreadingHTTPServer):
    """Serves `contents`, a dict (kind, repository) -> dict path -> bytes, and does harm where it is told to."""

    daemon_threads = True

    def __init__(self, contents: dict[tuple[str, str], dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), Answers)
        self.contents = contents
        self.asked: list[Asked] = []
        self.commits: list[dict] = []  # what was uploaded: revision, message and token
        self.private: set[str] = set()  # repositories that not everyone can read
        self.revisions: set[str] = set()
        self.lies: dict[str, bytes] = {}  # path -> what is served in place of what is listed
        self.break_after: int | None = None  # bytes into a file's content: there the connection is closed, once
        self.refuse_after_break = True  # whether all contents are refused from then on

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store(self) -> str:
        """Where the contents are: as with the Hub, another host than the one that is asked for them."""
        return f"http://localhost:{self.server_port}/storage"

    def environment(self) -> dict[str, str]:
        """What a client's environment must say to reach this server, and nothing else: other hosts end in a proxy."""
        nowhere = "http://127.0.0.1:9"  # the discard port, where nobody listens
        return {
            "HF_ENDPOINT": self.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "http_proxy": nowhere,
            "https_proxy": nowhere,
            "all_proxy": nowhere,
            "no_proxy": "127.0.0.1,localhost",
        }


@contextmanager
def serving(contents: dict[tuple[str, str], dict[str, bytes]]) -> Iterator[StandInHub]:
    with StandInHub(contents) as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield hub
        hub.shutdown()


def listed(path: str, content: bytes) -> dict:
    """A file as the Hub's listings show it."""
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()  # noqa: S324 - as git does
    entry = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if len(content) >= LARGE:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandInHub

    def log_message(self, *_):
        pass

    def do_POST(self):  # noqa: N802
        """/api/KINDs/OWNER/REPO/paths-info/REVISION: those of the paths asked for that exist. Others: see uploads."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parts = urlsplit(self.path).path.split("/")[2:]
        if parts[3:4] != ["paths-info"]:
            self.answer_upload(parts, body)
            return
        repository = self.repository(parts)
        if repository is not None:
            asked = parse_qs(body)["paths"]
            self.send_json([listed(path, repository[path]) for path in asked if path in repository])

    def answer_upload(self, parts: list[str], body: str) -> None:
        """…/repos/create, …/validate-yaml, and of a repository …/branch, …/preupload and …/commit/REVISION."""
        if parts == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = HTTPStatus.CONFLICT if ("model", name) in self.server.contents else HTTPStatus.OK
            if status == HTTPStatus.OK:
                self.server.contents["model", name] = {}
                self.server.private |= {name} if asked["visibility"] == "private" else set()
            self.send_json({"url": f"{self.server.address}/{name}"}, status)
        elif parts == ["validate-yaml"]:
            self.send_json({"errors": [], "warnings": []})
        elif parts[3] == "branch":
            self.send_json({})
        elif parts[3] == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self.send_json({"files": modes})
        else:
            repository, commit = self.repository(parts), {"revision": parts[4], "token": self.headers["Authorization"]}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    commit["message"] = value["summary"]
                elif line["key"] == "file":
                    repository[value["path"]] = base64.b64decode(value["content"])
                else:
                    del repository[value["path"]]
            self.server.commits.append(commit)
            url = f"{self.server.address}/{'/'.join(parts[1:3])}/commit/{COMMIT}"
            self.send_json({"commitUrl": url, "commitOid": COMMIT})

    def do_HEAD(self):  # noqa: N802
        self.do_GET()

    def do_GET(self):  # noqa: N802
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api":
            self.answer_api(parts[1:])
        elif parts[0] == "storage":
            self.send_content("/".join(parts[4:]), self.server.contents[parts[1], "/".join(parts[2:4])])
        else:
            kind = "datasets" if parts[0] == "datasets" else "models"
            self.answer_resolve([kind, *parts[kind == "datasets" :]])

    def repository(self, parts: list[str]) -> dict[str, bytes] | None:
        """Contents for KINDs/OWNER/REPO/VERB/REVISION/…; answers itself where there are none."""
        kind, name, revision = parts[0].removesuffix("s"), "/".join(parts[1:3]), parts[4] if len(parts) > 4 else "main"
        found = self.server.contents.get((kind, name))
        self.server.revisions.add(revision)
        if found is None:
            self.send_missing("RepoNotFound")
        return found

    def answer_api(self, parts: list[str]) -> None:
        """KINDs/OWNER/REPO/tree/REVISION/FOLDER lists a folder, …/revision/REVISION names the commit."""
        if parts[0] not in ("models", "datasets"):
            self.send_missing("None")
            return
        repository = self.repository(parts)
        if repository is None:
            return
        if parts[3:4] == ["tree"]:
            inside = "".join(f"{part}/" for part in parts[5:])
            files = [listed(path, content) for path, content in repository.items() if path.startswith(inside)]
            folders = {path.rsplit("/", 1)[0] for path in repository if path.startswith(inside) and "/" in path}
            entries = files + [{"type": "directory", "path": folder, "oid": COMMIT} for folder in sorted(folders)]
            self.send_json(entries) if files or not inside else self.send_missing("EntryNotFound")
        else:
            name = "/".join(parts[1:3])
            self.send_json({"id": name, "sha": COMMIT, "siblings": [], "private": name in self.server.private})

    def answer_resolve(self, parts: list[str]) -> None:
        """KINDs/OWNER/REPO/resolve/REVISION/PATH: the Hub names the file's marks and sends the client to its store."""
        repository, path = self.repository(parts), "/".join(parts[5:])
        if repository is None:
            return
        if path not in repository:
            self.send_missing("EntryNotFound")
            return
        entry = listed(path, repository[path])
        self.send_head(
            HTTPStatus.FOUND,
            Location=f"{self.server.store}/{parts[0].removesuffix('s')}/{parts[1]}/{parts[2]}/{path}",
            X_Repo_Commit=COMMIT,
            X_Linked_Size=len(repository[path]),
            X_Linked_ETag=f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"',
            Content_Length=0,
        )

    def send_content(self, path: str, repository: dict[str, bytes]) -> None:
        """The file's bytes, from where the client wants them."""
        content = self.server.lies.get(path, repository[path])
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else None
        self.server.asked += [Asked(path, start)] if self.command == "GET" else []
        if self.server.break_after == -1 and self.server.refuse_after_break:
            self.send_head(HTTPStatus.FORBIDDEN, Content_Length=0)
            return
        body = content[start or 0 :]
        headers = {"Content_Length": len(body), "ETag": '"store"'}
        if start is None:
            self.send_head(HTTPStatus.OK, **headers)
        else:
            whole = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_head(HTTPStatus.PARTIAL_CONTENT, Content_Range=whole, **headers)
        if self.command == "GET":
            self.send_body(body)

    def send_body(self, body: bytes) -> None:
        limit = self.server.break_after
        if limit is None or limit < 0 or len(body) <= limit:
            self.wfile.write(body)
            return
        self.server.break_after = -1  # once
        self.wfile.write(body[:limit])
        self.wfile.flush()
        self.close_connection = True

    def send_json(self, value: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = json.dumps(value).encode()
        self.send_head(status, Content_Type="application/json", Content_Length=len(body))
        self.wfile.write(body)

    def send_missing(self, code: str) -> None:
        self.send_head(HTTPStatus.NOT_FOUND, X_Error_Code=code, Content_Length=0)

    def send_head(self, status: HTTPStatus, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
