"""Users per second of the server, beside predict.py's, and seconds to an answer at 70 % of that load.

    python benchmarks/server_load.py
    python benchmarks/server_load.py --rank_by blend --clients 8 --seconds 60

The bundle is that of benchmarks/serving.py, and the server a process of its own on this machine. First the gate: its
answers are those of the library; otherwise no time is printed. Then, in an open loop, requests are due at random times
(Poisson), whether or not earlier ones are answered; each of the clients has one connection and one request at a time,
and a request that finds none of them free waits, which counts.

Each repeat times, in turn, predict.py's model and exact search for histories of the same length, the server at twice
that load, and the server at 70 % of what it then has answered; medians of the repeats are reported.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch

import predict
from benchmarks import common
from benchmarks.serving import ROOT, make_bundle, make_parts
from serving.recommender import Recommender
from utils.cli import positive_float, positive_int, run
from utils.data import Catalog, Sequences
from utils.errors import InputError
from utils.Trie import Trie

CHECKED_USERS, PREDICTED_USERS, BATCH = 96, 192, 48
SHARE = 0.7  # of the highest load, at which seconds are measured


def main() -> None:
    """Build, check, load, report."""
    flags = common.benchmark_parser(__doc__)
    flags.add_argument("--rank_by", default="model", help="as of serving.bundle")
    flags.add_argument("--clients", type=positive_int, default=64, help="connections")
    flags.add_argument("--length", type=positive_int, default=12, help="items of a history")
    flags.add_argument("--seconds", type=positive_float, default=15.0, help="of each load")
    flags.add_argument("--log_users", type=positive_int, default=20_000, help="histories of the log")
    flags.add_argument("--tf_layer", type=positive_int, default=3, help="transformer layers")
    flags.add_argument("--width", type=positive_int, default=768, help="hidden width")
    args = flags.parse_args()
    common.check_results(args)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        make_parts(Path(folder), args)
        recommender = make_bundle(Path(folder), args.rank_by)
        with server(Path(folder) / args.rank_by) as port:
            check(recommender, port, args)
            rounds = [time_in_turn(recommender, port, number, args) for number in range(args.repeats + 1)][1:]
    result = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    result["all_ratios"] = [round(one["ratio"], 3) for one in rounds]
    result["matrix_gflops"] = common.matrix_rate(device) / 1e9
    common.report("server_load", args, device, result)


def time_in_turn(recommender: Recommender, port: int, number: int, args: argparse.Namespace) -> dict[str, float]:
    """Predict.py's rate, the server's highest, and seconds at a share of that, one after another."""
    predicted = predict_rate(recommender, number, args)
    highest = load(port, 2 * predicted, 2 * number, args)
    usual = load(port, SHARE * highest.per_second, 2 * number + 1, args)
    median, p95 = np.quantile(usual.seconds, [0.5, 0.95]).tolist()
    return {
        "users_per_s": highest.per_second,
        "predict_users_per_s": predicted,
        "ratio": highest.per_second / predicted,
        "usual_users_per_s": usual.per_second,
        "median_ms": 1e3 * median,
        "p95_ms": 1e3 * p95,
        "p95_over_median": p95 / median,
    }


@contextlib.contextmanager
def server(bundle: Path) -> Iterator[int]:
    """The command, in the block, at a free port, which is given; InputError unless it ends well."""
    command = [sys.executable, "-m", "serving.server", str(bundle), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
    finally:
        process.terminate()
        process.communicate()
    if process.returncode:
        raise InputError(f"the server ended with exit code {process.returncode}; no time is reported")


def histories(args: argparse.Namespace, seed: int) -> Iterator[list[int]]:
    """Draw histories without end."""
    rng = np.random.default_rng([args.seed, seed])
    while True:
        yield rng.integers(0, args.items, args.length).tolist()


@torch.inference_mode()
def predict_rate(recommender: Recommender, number: int, args: argparse.Namespace) -> float:
    """Users per second of model and exact search as predict.py has them."""
    view = recommender.view()
    catalog = Catalog(view.catalog.codes, view.catalog.embeddings)
    some = Sequences.of(*itertools.islice(histories(args, number), PREDICTED_USERS))
    find = predict.make_search("exact", Trie(catalog.codes), common.TOP, catalog.codes, some.items[: len(some)], False)
    batches = predict.PROTOCOLS["corrected"].batches(some.lengths, BATCH)
    started = time.perf_counter()
    predict.recommend(recommender.bundle.model, some, catalog, find, batches)
    return len(some) / (time.perf_counter() - started)


# Clients


class Load(NamedTuple):
    """What became of the requests of a load."""

    per_second: float  # answers in the time of the load
    seconds: list[float]  # of each answer, from when its request was due


class Client:
    """A connection that is kept; asyncio's streams, since a library of HTTP would take time from the server."""

    def __init__(self, port: int):
        self.port = port

    async def connect(self) -> "Client":
        """Open the connection."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def recommend(self, history: list[int]) -> list[dict]:
        """The items of an answer; InputError for any other."""
        body = json.dumps({"history": history, "k": common.TOP}).encode()
        head = "POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answered = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        found = await self.reader.readexactly(int(re.search(r"content-length: (\d+)", answered)[1]))
        if " 200 " not in answered.splitlines()[0]:
            raise InputError(f"the server answered {found.decode()}; no time is reported")
        return json.loads(found)["items"]


def check(recommender: Recommender, port: int, args: argparse.Namespace) -> None:
    """InputError unless many clients get the lists of the library, each for its own history."""
    asked = list(itertools.islice(histories(args, 10**6), CHECKED_USERS))

    async def ask() -> list[list[dict]]:
        clients = [await Client(port).connect() for _ in asked]
        return await asyncio.gather(
            *(client.recommend(history) for client, history in zip(clients, asked, strict=True))
        )

    expected = recommender.recommend(asked, k=common.TOP)
    for found, same in zip(asyncio.run(ask()), expected, strict=True):
        chances = np.array([[one["probability"], other.probability] for one, other in zip(found, same, strict=True)])
        ids = {one["id"] for one in found} & {one.id for one in same}
        if not np.allclose(chances[:, 0], chances[:, 1], rtol=1e-3) or len(ids) < common.TOP - 1:  # of equal scores
            raise InputError("wrong: the server's lists are not those of the library; no time is reported")


def load(port: int, rate: float, number: int, args: argparse.Namespace) -> Load:
    """Ask at random times, `rate` a second on average; `number` tells loads apart."""

    async def ask() -> Load:
        gaps = np.random.default_rng([args.seed, number]).exponential(1 / rate, 2 + int(2 * rate * args.seconds))
        clients = [await Client(port).connect() for _ in range(args.clients)]
        drawn, started, taken, in_time = histories(args, 10**7 + number), time.perf_counter() + 0.1, [], 0
        due = iter((started + np.cumsum(gaps)).tolist())

        async def one(client: Client) -> None:
            nonlocal in_time
            while (at := next(due)) < started + args.seconds and time.perf_counter() < started + args.seconds:
                await asyncio.sleep(max(0.0, at - time.perf_counter()))
                await client.recommend(next(drawn))
                taken.append(time.perf_counter() - at)
                in_time += time.perf_counter() < started + args.seconds

        await asyncio.gather(*map(one, clients))
        return Load(in_time / args.seconds, taken)

    return asyncio.run(ask())


if __name__ == "__main__":
    run(main)
