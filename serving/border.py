"""What every request passes before a path sees it, and every answer on its way out.

Faults become one sentence, {"error": "…"}, whoever finds them. A fault that nobody expected says no more than that to
the client; its traceback is in the server's log.
"""

import asyncio
import hmac
import json
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.batching import Closed, Full
from serving.service import TOKEN, Gone, Refused, Service
from utils.errors import InputError, shown
from utils.files import nan_to_none

WRITES = "/items/"  # begins the paths that change the bundle
LOCAL = ("localhost", "127.0.0.1", "::1")
CLIENT_GONE = 499  # as web servers count it; nobody reads the answer
HEADERS = {
    # Our page needs nothing from elsewhere, and may stand in no other page.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
RAW_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
MOST_BYTES = 1 << 20  # in a body
BODY_SECONDS = 10.0  # from one part of a body to the next
TOO_LARGE = f"the body has more than {MOST_BYTES} bytes"
STOPPING = "the server is stopping and takes no more requests"


class Json(JSONResponse):
    """JSON that any text can stand in, halves of surrogate pairs, too; what is not a number is null."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(nan_to_none(content)).encode()


def fault(status: int, sentence: str, **headers: str) -> Json:
    """An answer that says what is wrong."""
    return Json({"error": sentence}, status, {name.replace("_", "-"): said for name, said in headers.items()})


class Border:
    """Stands around an app: refuses what is not for it, adds headers to its answers, and counts them."""

    def __init__(self, app: ASGIApp, service: Service, paths: Collection[str], hosts: Collection[str] | None):
        """Of an app with some `paths`, for requests that name one of `hosts`; None: any."""
        self.app, self.service, self.paths, self.hosts = app, service, paths, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        started, status, whole = time.perf_counter(), 0, False

        async def received() -> Message:
            nonlocal whole
            try:
                async with asyncio.timeout(None if whole else BODY_SECONDS):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not go on for {BODY_SECONDS} seconds") from None
            whole = not message.get("more_body")
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *RAW_HEADERS]
            await send(message)

        try:
            await (self.refusal(HttpRequest(scope)) or self.app)(scope, received, watched)
        except asyncio.CancelledError:  # at the end of --grace
            if not status:
                await fault(503, STOPPING)(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.service.metrics.answered(path, status or 500, time.perf_counter() - started)

    def refusal(self, http: HttpRequest) -> Response | None:
        """Why a request is not let in, by its headers alone; None if it is."""
        if self.hosts is not None and host_of(http) not in self.hosts:
            # A page of another site may have had its name resolved to this machine.
            return fault(400, f"the Host header must name {' or '.join(self.hosts)}; --host lets others in")
        if self.service.stopping and http.url.path != "/metrics":
            return fault(503, STOPPING, connection="close")
        length = http.headers.get("content-length", "0")
        if len(length) > 18 or int(length) > MOST_BYTES:  # others have no length, and are counted as they come
            return fault(413, TOO_LARGE)
        if http.method == "POST":
            kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":  # which a page of another site cannot send unasked
                return fault(415, "the body must be JSON, with Content-Type: application/json")
        return self.refused_write(http) if http.url.path.startswith(WRITES) else None

    def refused_write(self, http: HttpRequest) -> Response | None:
        """Why a request may not change the bundle; None if it may."""
        if not self.service.token:
            return fault(403, f"nothing can be written, because the server was started without {TOKEN}")
        given, expected = http.headers.get("authorization", ""), f"Bearer {self.service.token}"
        if hmac.compare_digest(
            given.encode("latin-1"), expected.encode(errors="surrogateescape")
        ):  # bytes as they came
            return None
        said = f"writing needs the header Authorization: Bearer TOKEN with the token of {TOKEN}"
        return fault(401, said, www_authenticate="Bearer")


def host_of(http: HttpRequest) -> str | None:
    """The name in the Host header, without the port."""
    try:
        return urlsplit(f"//{http.headers.get('host', '')}").hostname
    except ValueError:
        return None


def add_handlers(app: FastAPI) -> None:
    """Let an app answer every fault with one sentence."""
    in_words = {
        "Not Found": "there is nothing at this path; /docs lists what there is",
        "Method Not Allowed": "this path takes another method; /docs lists them",
        "Content Too Large": TOO_LARGE,
        "There was an error parsing the body": "the body cannot be read as JSON",
    }
    answers = {
        Refused: lambda http, error: fault(400, str(error)),
        RequestValidationError: lambda http, error: fault(400, sentence(error)),
        HTTPException: lambda http, error: fault(error.status_code, in_words.get(error.detail, error.detail)),
        Full: lambda http, error: fault(503, "too many requests are waiting; try again", retry_after="1"),
        Closed: lambda http, error: fault(503, STOPPING, connection="close"),
        InputError: lambda http, error: fault(503, str(error)),
        Gone: lambda http, error: Response(status_code=CLIENT_GONE),
        Exception: lambda http, error: fault(500, "the server has met a fault, which its log describes"),
    }
    for kind, answer in answers.items():
        app.add_exception_handler(kind, answer)


def sentence(error: RequestValidationError) -> str:
    """The first of the faults that were found in a request, as `history: Input should be a valid list`."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][1]}"
    place = ".".join(str(part) for part in first["loc"][1:]) or first["loc"][0]
    said = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "value_error") else f", found {shown(first['input'])}"
    return f"{shown(place)[1:-1]}: {said}{given}"
