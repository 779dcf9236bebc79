"""What rows of --results say beside their figures."""

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import eval
import predict
from utils.files import fingerprint
from utils.rows import about_model, about_program, commit

NESTED = {"settings", "training", "config", "versions", "machine", "fingerprints"}


def rows_of(script, command: str, house, monkeypatch) -> pd.DataFrame:
    """The rows that a command makes on the small release, read as a user of pandas would."""
    monkeypatch.chdir(house.folder)
    monkeypatch.setattr(sys, "argv", [*command.split(), "--results", "rows.jsonl", "--device", "cpu"])
    script.main()
    read = pd.read_json("rows.jsonl", lines=True)
    Path("rows.jsonl").unlink()
    return read


def test_rows_of_predict(house, monkeypatch, capsys):
    beside = house / "ckpt/recgpt_layer_3_weight.json"
    beside.write_text(json.dumps({"training": {"seed": 7, "width": 768, "layers": [1]}, "data_share": 0.5}))
    command = "predict.py --dataset steam --compare A=lists.jsonl"
    users = [{"user": user, "items": [1]} for user in range(24)]
    (house / "lists.jsonl").write_text("".join(json.dumps(user) + "\n" for user in users))
    rows = rows_of(predict, command, house, monkeypatch)
    beside.unlink()
    first = rows.iloc[0]
    assert {name for name in rows if rows[name].map(type).isin([dict, list]).any()} == NESTED
    assert set(rows.seed) == {7} and first.program == "predict.py" and "+00:00" in str(first.date)
    assert first.training == {"seed": 7, "width": 768, "data_share": 0.5}
    assert first.config["layers"] == 3 and first.config["embedding_width"] == 768
    assert first.settings["test_batch_size"] == 96 and first.settings["compare"] == {"A": "lists.jsonl"}
    assert (first["items"], first.users_of_data, first.users) == (400, 24, 24)
    hashes = first.fingerprints
    assert hashes["test.pkl"] == fingerprint(house / "data/test/steam/test.pkl")
    assert {"weights", "tokenizer", "train.pkl", "item_text_embeddings.npy"} < hashes.keys()


def test_rows_of_eval(house, monkeypatch, capsys):
    rows = rows_of(eval, "eval.py --ckpt_path ckpt/recgpt_layer_3_weight.pt", house, monkeypatch)
    row = rows.iloc[0]
    assert row.seed is None or pd.isna(row.seed)  # the release does not tell
    assert row.loss > 0 and row.users == 24 and row.settings["data_path"] == "./data/eval"
    assert {"eval.pkl", "token_id_list_eval.pkl", "weights"} < row.fingerprints.keys()


def test_the_json_of_others_is_passed_over_where_it_is_odd():
    assert about_model({}, {"training": [1], "config": 3, "init_from": 4}) == {
        "seed": None,
        "config": {},
        "training": {"config": 3, "init_from": 4},
    }
    assert about_model({}, {"training": {"seed": True}})["seed"] is None
    assert about_model({}, {"init_from": {"name": "a.pt", "content": []}})["training"] == {"init_from": "a.pt"}


def test_no_row_names_the_host():
    row = about_program("p", argparse.Namespace(a=1), torch.device("cpu"))
    assert platform.node() not in row["machine"].values()
    assert row["machine"]["cores"] > 0 and row["versions"]["torch"] == torch.__version__


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_is_that_of_the_checkout_itself(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    assert commit(tmp_path) is None
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert commit(tmp_path) == head
    (tmp_path / "below").mkdir()
    assert commit(tmp_path / "below") is None
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    assert commit(tmp_path) == f"{head}-dirty"
