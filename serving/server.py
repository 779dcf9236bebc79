"""Answer over HTTP from a bundle: recommendations, similar items, changes of items, and a page to look at them.

    python -m serving.server my_bundle --port 8000
    RECGPT_TOKEN=$(openssl rand -hex 16) python -m serving.server my_bundle --host 0.0.0.0

The page is at http://127.0.0.1:8000, and /docs lists the paths. Requests that arrive together are computed together.
Only this machine is listened to unless --host says otherwise. Items are changed only by who sends the token that the
environment variable RECGPT_TOKEN has had at the start.
SIGTERM and Ctrl-C end it when what it has begun or put in its queue is answered.
"""

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from utils.cli import end_at_ctrl_c

if __name__ == "__main__":
    end_at_ctrl_c()

from serving.recommender import Recommender
from utils.cli import parser, positive_int, run, whole_number
from utils.errors import InputError, reason
from utils.util import add_device_flags, pick_device

if TYPE_CHECKING:
    import uvicorn

    from serving.service import Service

SETTINGS = {
    "log_level": "warning",
    "access_log": False,
    "server_header": False,
    "proxy_headers": False,
    "lifespan": "off",
    "ws": "none",
    "limit_concurrency": 1000,  # connections, each of which may send a body
}
KEEP_ALIVE = 30  # seconds until a connection that asks nothing is closed
port_number = whole_number(0, 2**16, "from 0 to 65535")


def main() -> None:
    """Open the bundle, listen, answer, stop."""
    args = parse()
    try:
        import uvicorn

        from serving.app import make_app
        from serving.border import LOCAL
        from serving.service import TOKEN, Limits, Service
    except ModuleNotFoundError as error:
        raise InputError(f"The server needs {error.name}: pip install -r requirements-serving.txt.") from error
    recommender = Recommender.open(args.bundle, str(pick_device(args)), args.half)
    recommender.view()  # which reads all files, so that the first request finds them open
    service = Service(recommender, Limits(args.batch, args.queue), os.environ.get(TOKEN))
    with listen(args.host, args.port) as listening:
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        app = make_app(service, LOCAL if args.host in LOCAL else None, address)
        seconds = {"timeout_keep_alive": KEEP_ALIVE, "timeout_graceful_shutdown": args.grace}
        server = uvicorn.Server(uvicorn.Config(app, **SETTINGS, **seconds))
        stop_gently(server, service)
        for number in (signal.SIGINT, signal.SIGTERM):  # from now on, and not only once it answers
            signal.signal(number, server.handle_exit)
        print(f"{args.bundle}: {address} (Ctrl-C stops it)", flush=True)
        server.run([listening])
    end(service)


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that serving.bundle has made")
    flags.add_argument("--port", type=port_number, default=8000, help="0: one that is free")
    flags.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all of this machine")
    flags.add_argument("--batch", type=positive_int, default=48, help="recommendations computed together, at most")
    flags.add_argument("--queue", type=positive_int, default=256, help="requests that may wait; others get 503")
    flags.add_argument("--grace", type=positive_int, default=20, help="seconds to answer what waits, at the end")
    flags.add_argument("--half", action="store_true", help="weights of 16 bits on a CPU: faster for short histories")
    add_device_flags(flags)
    return flags.parse_args()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; InputError for an address that is not of this machine, or a port that is taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=1024)
        # Or else the kernel holds back the second packet of an answer, its body, for 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--host {host} --port {port} cannot be listened to ({reason(error)}). Give others."
        ) from error


def stop_gently(server: "uvicorn.Server", service: "Service") -> None:
    """Let a signal end the server when all that waits is answered, with exit code 0; a second one ends it at once.

    Uvicorn's own way raises the signal again in the end, which would be another exit code.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        server.force_exit = server.should_exit
        server.should_exit = service.stopping = True

    server.handle_exit = handle


def end(service: "Service") -> None:
    """Say what was done; end the process although something is being computed, if nobody waits for it any more."""
    counts, finished = service.metrics.requests, service.close(1.0)
    print(f"stopped; {sum(counts.values())} requests were answered", flush=True)
    if not finished:
        print("error: --grace seconds were not enough for what was being computed", file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    run(main)
