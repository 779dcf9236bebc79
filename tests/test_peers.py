"""benchmarks/peers/run.py without its environment: what is cut off, chosen and written, with peers that record."""

import json
import pickle
import sys

import numpy as np
import pytest

from benchmarks.peers import run as peers
from benchmarks.peers.run import Peer, choose, make_judge, most_popular, validation
from utils.cli import run
from utils.data import Sequences

ITEMS, FUTURE = 12, 11
TRAIN = {"a": [1, 2, 3], "b": [2, 3, 4, 5], "c": [6], "d": [3, 3]}


@pytest.fixture
def folder(tmp_path):
    """Users of train.pkl come again with one item more, the planted one, which only the future knows."""
    test = {user: [*items, FUTURE] for user, items in TRAIN.items()} | {"new": [7, FUTURE]}
    for name, users in (("train", TRAIN), ("test", dict(reversed(test.items())))):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(users))
    np.save(tmp_path / "item_text_embeddings.npy", np.ones((ITEMS, 32), np.float32))
    return tmp_path


def lists_of(monkeypatch, folder, *flags) -> dict[str, dict]:
    output = folder / "lists.jsonl"
    monkeypatch.setattr(sys, "argv", ["run.py", "--dataset", str(folder), "--output", str(output), *flags])
    run(peers.main)
    return {row["user"]: row for row in map(json.loads, output.read_text().splitlines())}


@pytest.fixture
def seen(monkeypatch):
    """A peer that records what it is given, knows the items below 7, and recommends by the setting."""
    seen = {"trials": [], "train": [], "histories": []}

    def recommends(setting):
        def recommend(histories, k, exclude_history):
            seen["histories"].append(histories.lists())
            best = np.array([setting, *(item for item in range(7) if item != setting)])[:k]
            return [(best if min(had) < 7 else best[:0], -best.astype(np.float32)) for had in histories.lists()]

        return recommend

    def trials(sequences):
        seen["trials"].append(sequences.lists())
        for setting in (1, 3, 5):
            yield setting, recommends(setting)

    def train(sequences, setting):
        seen["train"].append((sequences.lists(), setting))
        return recommends(setting)

    monkeypatch.setattr(peers, "load_peer", lambda *_: Peer("epochs", trials, train))
    return seen


def test_no_target_is_ever_seen(monkeypatch, folder, seen):
    lists_of(monkeypatch, folder, "--model", "sasrec", "--device", "cpu")
    assert str(FUTURE) not in json.dumps(seen)
    # The choice is made without the last items of train.pkl, on which it is judged.
    assert seen["trials"] == [[[1, 2], [2, 3, 4], [6], [3]]]
    assert seen["histories"][:3] == [[[1, 2], [2, 3, 4], [3]]] * 3
    # Setting 3 finds two of the three targets at the top; then the whole of train.pkl is trained on.
    assert seen["train"] == [(list(TRAIN.values()), 3)]
    assert seen["histories"][3] == [[7], [3, 3], [6], [2, 3, 4, 5], [1, 2, 3]]


def test_given_epochs_nothing_is_chosen(monkeypatch, folder, seen, capsys):
    lists_of(monkeypatch, folder, "--model", "sasrec", "--device", "cpu", "--epochs", "4")
    assert seen["trials"] == [] and seen["train"] == [(list(TRAIN.values()), 4)]
    with pytest.raises(SystemExit) as stopped:
        lists_of(monkeypatch, folder, "--model", "ease", "--epochs", "4")
    assert stopped.value.code == 2 and "ease has none" in capsys.readouterr().err


def test_every_user_has_a_list_in_the_order_of_the_file(monkeypatch, folder, seen):
    lists = lists_of(monkeypatch, folder, "--model", "sasrec", "--device", "cpu", "--k", "2")
    assert list(lists) == ["new", "d", "c", "b", "a"]
    assert lists["a"] == {"user": "a", "items": [3, 0], "scores": [-3.0, 0.0]}
    assert lists["new"] == {"user": "new", "items": [3, 2], "scores": [4.0, 2.0]}, "all its items are unknown: popular"


def test_popular_items(monkeypatch, folder):
    lists = lists_of(monkeypatch, folder, "--model", "popular", "--k", "3")
    assert all(row["items"] == [3, 2, 1] and row["scores"] == [4.0, 2.0, 1.0] for row in lists.values())
    lists = lists_of(monkeypatch, folder, "--model", "popular", "--exclude_history", "--k", str(ITEMS))
    for user, row in lists.items():
        had = {*TRAIN.get(user, [7])}
        assert sorted(row["items"]) == sorted({*range(ITEMS)} - had)
        assert row["scores"][row["items"].index(FUTURE)] == 0.0, "its only occurrences are targets"


def test_short_lists(monkeypatch, folder, capsys):
    """Lists of train.pkl may be empty, as in cold starts; those of test.pkl need a history, as predict.py says."""
    (folder / "train.pkl").write_bytes(pickle.dumps({"nobody": [], **TRAIN}))
    (folder / "test.pkl").write_bytes(pickle.dumps({"short": [1], "b": [1, 2]}))
    with pytest.raises(SystemExit):
        lists_of(monkeypatch, folder, "--model", "popular")
    assert "--drop_short" in capsys.readouterr().err
    assert list(lists_of(monkeypatch, folder, "--model", "popular", "--drop_short")) == ["b"]


def test_validation_takes_some_of_many_users(monkeypatch):
    monkeypatch.setattr(peers, "VALIDATION_USERS", 5)
    train = Sequences.of(*([user, 100 + user] for user in range(20)), [7])
    fitted_on, (histories, targets) = validation(train, seed=0)
    assert fitted_on.lists() == [[user] for user in range(20)] + [[7]]
    assert len(histories) == 5 and (targets == 100 + np.concatenate(histories.lists())).all()


def test_the_best_is_chosen():
    found = iter([0.1, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.9])
    peer = Peer("epochs", lambda _: ((setting, None) for setting in range(8)), None)
    assert choose(peer, None, lambda _: next(found), np.inf) == 1, "5 trials in turn were no better"
    found = iter([0.1, 0.3])
    assert choose(peer, None, lambda _: next(found), 0.0) == 0, "the time is over"


def test_judged_by_ndcg():
    histories, popular = Sequences.of([0], [1], [2]), most_popular(Sequences.of([0, 0, 0, 1, 1, 2]), 3)
    judge = make_judge(histories, np.array([0, 1, 2]), exclude_history=False)
    assert judge(popular) == pytest.approx((1 + 1 / np.log2(3) + 1 / 2) / 3)
    assert make_judge(histories, np.array([0, 1, 2]), exclude_history=True)(popular) == 0.0


def test_the_missing_environment_is_named(monkeypatch, folder, capsys):
    monkeypatch.setitem(sys.modules, "benchmarks.peers.library", None)
    with pytest.raises(SystemExit) as stopped:
        lists_of(monkeypatch, folder, "--model", "ease", "--device", "cpu")
    assert stopped.value.code == 2 and "benchmarks/peers/setup.sh" in capsys.readouterr().err
