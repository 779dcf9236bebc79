"""The real-data experiment from end to end, on invented domains and with settings for seconds."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import real_data
from tests import runs
from utils.cli import run

ITEMS, USERS, WIDTH = 80, 120, 32
DOMAINS = ("books", "games")


@pytest.fixture
def experiment(tmp_path, monkeypatch, capsys):
    """experiment(flags): what the command prints, with the scripts in forked processes.

    Its flags are those of the experiment, and after them smaller numbers for some.
    """
    for name, smaller in (
        ("MODEL_SIZE", "--width 32 --heads 2"),
        ("PRE_TRAINING", "--batch_size 32 --max_steps 8"),
        ("TRAINING", "--batch_size 32 --lr 1e-2 --epoch 6"),
    ):
        monkeypatch.setattr(real_data, name, f"{getattr(real_data, name)} {smaller}")
    rng = np.random.default_rng(0)
    (tmp_path / "real/embeddings").mkdir(parents=True)
    for domain in DOMAINS:
        items = [{"id": item, "text": {"title": f"{domain} {item}"}} for item in range(ITEMS)]
        lengths, starts = rng.integers(3, 12, USERS), rng.integers(0, ITEMS, USERS)
        lists = [
            ((start + 3 * np.arange(length)) % ITEMS).tolist() for start, length in zip(starts, lengths, strict=True)
        ]
        users = [{"user": f"u{user}", "items": items} for user, items in enumerate(lists)]
        for name, records in (("items", items), ("sequences", users)):
            write(tmp_path / "real" / domain / f"{name}.jsonl.gz", records)
        codes = rng.integers(-127, 128, (ITEMS, WIDTH)).astype(np.int8)
        np.savez(tmp_path / f"real/embeddings/{domain}.npz", codes=codes, scale=np.full((ITEMS, 1), 0.01, "f2"))
    called = []

    def forked(words, **_):
        script = str(Path(words[1]).with_suffix("")).replace("/", ".")
        called.append(script.split(".")[-1])
        runs.finish(tmp_path, " ".join(words[2:]), script=script)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(real_data.subprocess, "run", forked)

    def experiment(flags: str = "") -> tuple[str, list[str]]:
        where = f"real_data.py {tmp_path}/real --work {tmp_path}/work --pre_train books --test games"
        monkeypatch.setattr(sys, "argv", f"{where} --shares 0.5 --seeds 3 {flags}".split())
        called.clear()
        run(real_data.main)
        return capsys.readouterr().out, list(called)

    return experiment


def write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_every_stage_once(tmp_path, experiment):
    said, called = experiment("--users 100")
    shared = ["ae_trainer", "make_pre_train", "pre_train", "make_pre_train"]
    assert called == shared + 2 * ["pre_train", "pre_train", "predict"]
    assert "games, 50% of the users: NDCG@10" in said
    for row in ("RecGPT, scratch", "RecGPT, pre-trained", "blend with RecGPT, pre-trained", "blend (its log)", "EASE"):
        assert f"\n{row} " in said
    assert "RecGPT, pre-trained over RecGPT, scratch: " in said and "times the best single method" in said

    found = real_data.gains(tmp_path / "work/runs/games/0.5/3/scratch/users.npz")
    assert found["transitions"].mean() > 0.8, "they know the steps"
    metadata = json.loads((tmp_path / "work/runs/games/0.5/3/pre-trained/whole/layer_2_last.json").read_text())
    assert metadata["refit_of"]["step"] > 0 and metadata["init_from"]["name"] == "layer_2_last.pt"

    again, called = experiment("--users 100")
    assert not called and again.split("games, 50%")[1] == said.split("games, 50%")[1]


def test_targets_are_in_no_log_and_a_share_is_a_part_of_the_users(tmp_path, experiment):
    real_data.make_data_set(tmp_path / "real", "games", tmp_path / "set", users=20)
    train, test = (real_data.load_pickle(tmp_path / "set" / name, dict, "") for name in ("train.pkl", "test.pkl"))
    assert len(test) == 20 and len(train) == USERS
    assert all(train[user] == items[:-1] for user, items in test.items())
    real_data.share_of(tmp_path / "set", 0.25, 1, tmp_path / "part")
    part = real_data.load_pickle(tmp_path / "part/train.pkl", dict, "")
    assert len(part) == USERS / 4 and part.items() <= train.items()
    assert real_data.load_pickle(tmp_path / "part/test.pkl", dict, "") == test


def test_a_failing_step_is_named(experiment, monkeypatch):
    monkeypatch.setattr(real_data.subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 2))
    said, _ = experiment()
    assert "vae_len4_fsq88865_ep10.pt: exit code 2, see " in said and "layer_3_best.pt" not in said
