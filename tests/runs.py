"""Pre-training in processes of their own, quickly: a server that has the imports behind it forks them."""

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.conftest import ROOT, dump
from utils.cli import run

WIDTH, ITEMS = 32, 300
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pre_train"])


def make_data(folder: Path, histories: int, held_out: int = 40) -> None:
    """folder/pt and folder/ev in the release's layout, of random histories of 2 to 30 items."""
    rng = np.random.default_rng(0)
    codes, embeddings = rng.integers(0, 15360, (ITEMS, 4)).tolist(), rng.standard_normal((ITEMS, WIDTH))
    drawn = {
        user: rng.integers(0, ITEMS, length).tolist()
        for user, length in enumerate(np.minimum(1 + rng.geometric(0.2, histories + held_out), 30))
    }
    dump(folder / "pt/train.pkl", {user: items for user, items in drawn.items() if user < histories})
    dump(folder / "pt/token_id_list.pkl", codes)
    np.save(folder / "pt/all_item_text_embeddings.npy", embeddings.astype(np.float32))
    dump(folder / "ev/eval.pkl", {user: items for user, items in drawn.items() if user >= histories})
    dump(folder / "ev/token_id_list_eval.pkl", codes)
    dump(folder / "ev/eval_id_map.pkl", {item: item for item in range(ITEMS)})
    np.save(folder / "ev/all_item_text_embeddings_eval.npy", embeddings.astype(np.float32))


def start(folder: Path, flags: str, hurt=None, script: str = "pre_train") -> multiprocessing.Process:
    """`SCRIPT.py FLAGS` in `folder`, on one thread; `hurt` is called in the process before it starts."""
    process = FORKS.Process(target=_child, args=(str(folder), flags, hurt, script))
    process.start()
    return process


def finish(folder: Path, flags: str, expect: int = 0, hurt=None, script: str = "pre_train") -> str:
    """The same, to its end; returns what it said."""
    process = start(folder, flags, hurt, script)
    process.join(timeout=120)
    said = (folder / "said").read_text()
    assert process.exitcode == expect, f"{flags}: exit {process.exitcode}\n{said[-3000:]}"
    return said


def _child(folder: str, flags: str, hurt, script: str) -> None:
    os.chdir(folder)
    out = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    sys.argv = [f"{script}.py", *flags.split()]
    if hurt is not None:
        hurt()
    run(importlib.import_module(script).main)


def two(folder: Path, flags: str, script: str = "pre_train.py") -> subprocess.Popen:
    """`torchrun --nproc_per_node 2 SCRIPT FLAGS` in `folder`, on the CPU."""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            [*launcher, str(ROOT / script), *flags.split()], cwd=folder, env=env, stdout=said, stderr=said
        )


def finish_two(folder: Path, flags: str, script: str = "pre_train.py", expect: int = 0) -> None:
    """The same, to its end."""
    code = two(folder, flags, script).wait(timeout=120)
    assert code == expect, (folder / "said").read_text()[-5000:]


def records(path: Path) -> list[dict]:
    """The JSON lines of a log; none where there is none yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(log: Path, step: int, process) -> None:
    """Until a log has reached a step, or its run has come to a good end."""
    until = time.monotonic() + 100
    while not any(record["step"] >= step and "loss" in record for record in records(log)):
        ended = process.exitcode if hasattr(process, "exitcode") else process.poll()
        if ended == 0:
            return
        assert ended is None and time.monotonic() < until, (log.parent / "said").read_text()[-3000:]
        time.sleep(0.01)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def same(left: Path, right: Path) -> bool:
    """Whether two checkpoints hold the same bits."""
    one, other = weights(left), weights(right)
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


class AtWrite:
    """For `hurt`: `act` at the n-th time that a file is written and about to get its name; `on`: and ever after."""

    def __init__(self, number: int, act: Callable[[], None], on: bool = False):
        self.number, self.act, self.on = number, act, on

    def __call__(self) -> None:
        synced, left = os.fsync, [self.number]

        def fsync(file):
            left[0] -= 1
            if left[0] == 0 or (self.on and left[0] < 0):
                self.act()
            synced(file)

        os.fsync = fsync


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fill_the_disk() -> None:
    raise OSError(28, "No space left on device")
