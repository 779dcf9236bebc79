"""A small directory in the release's layout, with the stand-in weights of the reference figures."""

import importlib
import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.golden import recipe
from utils.cli import run

# Tests press Ctrl-C, which a shell has its jobs in the background ignore: they and what they start must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"


class Reference(NamedTuple):
    """The reference figures with the inputs they belong to."""

    figures: dict[str, np.ndarray]
    embeddings: np.ndarray  # (N, 768) float32
    histories: list[list[int]]  # targets included
    model: dict[str, torch.Tensor]
    tokenizer: dict[str, torch.Tensor]


@pytest.fixture
def place(data, request):
    """A folder of the test's own beside the `data` that its module makes."""
    folder = data / re.sub(r"\W+", "_", request.node.name)
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def reference() -> Reference:
    figures = dict(np.load(GOLDEN / "case1.npz"))
    shapes = json.loads((GOLDEN / "shapes.json").read_text())
    seed, items = int(figures["seed"]), int(figures["n_items"])
    histories = recipe.sequences(int(figures["n_users"]), items, seed)
    histories[0] = (histories[0] * 200)[:300]
    weights = {
        part: {name: torch.from_numpy(value) for name, value in recipe.weights(shapes[part], seed).items()}
        for part in ("model", "autoencoder")
    }
    embeddings = recipe.embeddings(items, 768, seed, duplicates=int(figures["duplicates"]))
    return Reference(figures, embeddings, histories, weights["model"], weights["autoencoder"])


class House:
    """A working directory with the scripts in place, in which commands are typed."""

    def __init__(self, folder: Path):
        self.folder = folder
        for entry in ROOT.iterdir():
            if entry.suffix in (".py", ".txt", ".sh") or entry.name in (
                "utils",
                "data_processing",
                "serving",
                "configs",
            ):
                (folder / entry.name).symlink_to(entry)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def type(self, command: str, expect: int = 0) -> subprocess.CompletedProcess:
        """Run a shell command here; check its exit code."""
        process = self.start(command)
        stdout, stderr = process.communicate()
        assert process.returncode == expect, f"{command}: exit {process.returncode}\n{stdout}\n{stderr[-4000:]}"
        return subprocess.CompletedProcess(command, expect, stdout, stderr)

    def start(self, command: str) -> subprocess.Popen:
        """Begin a shell command here, in the environment of the tests."""
        bin_folder = str(Path(sys.executable).parent)
        env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": sys.prefix}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, shell=True, cwd=self.folder, env=env, text=True, **pipes)

    def refuse(self, monkeypatch, capsys, command: str, *said: str) -> None:
        """Run `python SCRIPT FLAGS` in this process: it must exit with 2 and one message that says all of `said`."""
        interpreter, script, *arguments = shlex.split(command)
        assert interpreter == "python"
        monkeypatch.chdir(self.folder)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(importlib.import_module(script.removesuffix(".py").replace("/", ".")).main)
        message = capsys.readouterr().err.strip()
        assert stopped.value.code == 2
        assert "Traceback" not in message and len(message.splitlines()[-1]) > 20
        for words in said:
            assert words in message.splitlines()[-1], message


def dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))


@pytest.fixture(scope="session")
def house(tmp_path_factory, reference) -> House:
    """Release weights, tokenizer, data/pre_train, data/eval and data/test/steam, with 400 items and 24 users.

    The metrics of the reference figures have targets of their own: data/test/targets has them.
    """
    house = House(tmp_path_factory.mktemp("house"))
    for folder in ("ckpt", "vae_ckpt", "data/pre_train", "data/eval", "data/test/steam", "data/test/targets"):
        (house / folder).mkdir(parents=True)
    torch.save(reference.model, house / "ckpt/recgpt_layer_3_weight.pt")
    torch.save(reference.tokenizer, house / "vae_ckpt/vae_len4_fsq88865_ep90.pt")
    codes, histories = reference.figures["tokens"].tolist(), dict(enumerate(reference.histories))

    dump(house / "data/pre_train/train.pkl", {user: items for user, items in histories.items() if user})
    dump(house / "data/pre_train/token_id_list.pkl", codes)
    np.save(house / "data/pre_train/all_item_text_embeddings.npy", reference.embeddings.astype(np.float64))

    backwards = np.arange(len(codes))[::-1]  # item i's embedding is in row N - 1 - i
    dump(house / "data/eval/eval.pkl", histories)
    dump(house / "data/eval/token_id_list_eval.pkl", dict(enumerate(codes)))
    dump(house / "data/eval/eval_id_map.pkl", dict(enumerate(backwards.tolist())))
    np.save(house / "data/eval/all_item_text_embeddings_eval.npy", reference.embeddings[backwards])

    targets = reference.figures["targets"].tolist()
    for name, last in (("steam", None), ("targets", targets)):
        folder = house / "data/test" / name
        lists = histories if last is None else {user: histories[user][:-1] + [last[user]] for user in histories}
        dump(folder / "test.pkl", lists)
        dump(folder / "train.pkl", histories)
        cold = {user: items[:3] for user, items in lists.items()}
        dump(folder / "cold_test.pkl", cold)
        dump(folder / "cold_train.pkl", cold)
        dump(folder / "item_text_dict.pkl", {item: {"title": f"item {item}"} for item in range(len(codes))})
        np.save(folder / "item_text_embeddings.npy", reference.embeddings)
    return house
