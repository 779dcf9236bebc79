"""Metrics through predict.py where items share their codes: the order of a catalog must decide nothing."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch

import predict
from ae_trainer import AutoEncoder
from model import RecGPT, RecGPTConfig
from tests.conftest import dump

ITEMS, USERS, WIDTH = 50, 600, 32


@pytest.fixture
def measure(monkeypatch, tmp_path, capsys):
    """Results of predict.py, by method, on 50 items of one text and users who take the first ones most often."""
    torch.manual_seed(0)
    torch.save(AutoEncoder(WIDTH).state_dict(), tmp_path / "vae.pt")
    torch.save(RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=WIDTH)).state_dict(), tmp_path / "model.pt")
    rng = np.random.default_rng(1)
    weights = 1 / np.arange(1, ITEMS + 1)
    drawn = rng.choice(ITEMS, (USERS, 3), p=weights / weights.sum())

    def run(flags: str = "", backwards: bool = False, alone: int = 0) -> dict[str, dict]:
        """`backwards` numbers the items the other way round; `alone` items have a text, and codes, of their own."""
        embeddings = np.ones((ITEMS, WIDTH), dtype=np.float32)
        embeddings[:alone] = np.random.default_rng(0).standard_normal((alone, WIDTH))
        order = np.arange(ITEMS)[::-1] if backwards else np.arange(ITEMS)
        folder = tmp_path / "set"
        dump(folder / "test.pkl", {user: order[items].tolist() for user, items in enumerate(drawn)})
        dump(folder / "train.pkl", {0: list(range(ITEMS))})
        np.save(folder / "item_text_embeddings.npy", embeddings[order])
        results = tmp_path / "results.jsonl"
        results.unlink(missing_ok=True)
        command = f"predict.py --dataset {folder} --ckpt_path {tmp_path}/model.pt --vae_ckpt {tmp_path}/vae.pt"
        monkeypatch.setattr(sys, "argv", f"{command} --results {results} --device cpu {flags}".split())
        predict.main()
        found = map(json.loads, results.read_text().splitlines())
        return {one["method"]: one for one in found if one["group"] == "all users"}

    return run


@pytest.mark.parametrize("search", ["exact", "beam"])
def test_a_catalog_in_order_of_popularity_gains_nothing(measure, capsys, search):
    forwards, backwards = (measure(f"--search {search}", backwards=turned) for turned in (False, True))
    assert "50 of 50 items share their codes with another" in capsys.readouterr().out
    for method in ("RecGPT", "popularity"):
        for found in (forwards[method], backwards[method]):
            assert found["hit@5"] == pytest.approx(5 / ITEMS) and found["hit@1"] == pytest.approx(1 / ITEMS)
            assert found["ndcg@5"] == pytest.approx(sum(1 / np.log2(rank + 1) for rank in range(1, 6)) / ITEMS)
    new = 0.05 < forwards["nearest text"]["hit@5"] < 5 / (ITEMS - 1)  # the last item itself is left out
    assert new and forwards["nearest text"]["hit@5"] == pytest.approx(backwards["nearest text"]["hit@5"])


def test_lists_stay_in_order_of_ids_and_released_as_published(measure, tmp_path):
    measure(f"--output {tmp_path}/lists.jsonl")
    lists = [json.loads(line)["items"] for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
    assert lists == [[0, 1, 2, 3, 4]] * USERS
    published = measure("--protocol released")
    assert published["RecGPT"]["hit@5"] < 0.02  # of items that share codes, only the one with the highest id
    assert published["popularity"]["hit@5"] > 0.4  # ids decide


def test_without_ties_the_place_in_the_list_counts(measure, tmp_path, capsys):
    found = measure(f"--output {tmp_path}/lists.jsonl", alone=ITEMS)
    assert "share their codes" not in capsys.readouterr().out
    lists = [json.loads(line)["items"] for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
    targets = [items[-1] for items in pickle.loads((tmp_path / "set/test.pkl").read_bytes()).values()]  # noqa: S301
    hits = sum(target in items for target, items in zip(targets, lists, strict=True))
    assert 0 < hits < USERS and found["RecGPT"]["hit@5"] == pytest.approx(hits / USERS)
