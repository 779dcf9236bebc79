"""Bundles and what is recommended from them: the scores of the parts, kept in step through every change."""

import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from ae_trainer import AutoEncoder
from data_processing.parts import encoding
from model import RecGPT, RecGPTConfig
from serving import bundle as bundle_script
from serving import bundles, making, recommend
from serving.asked import Request
from serving.histories import Lines, Reading, read_histories, resumable_lines
from serving.log import grow_log, load_log, save_log
from serving.recommender import Recommender
from serving.scoring import scores_of_all
from serving.store import Item, ItemStore
from tests.conftest import ROOT, dump
from tests.test_data_processing import HashEncoder
from utils import whitening
from utils.blend import WITH_LOG, WITH_NETWORK, Blender, Domain
from utils.blend_files import load_blends
from utils.checkpoint import save_state
from utils.cli import run
from utils.data import Catalog, Sequences
from utils.errors import DiskError, InputError
from utils.files import save_json
from utils.processes import Stopped
from utils.scores import LogStatistics, Statistics
from utils.whitening import text_rows, whiten

ITEMS, WIDTH, TEXTLESS = 80, 32, 7
RANKINGS = ("blend", "log", "model", "text")


def text_of(item: int) -> dict:
    return {"title": f"Thing {item}", "brand": f"Maker {item % 5}"}


def name_of(item: int) -> str:
    return f"B{item:03}"


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A data set of 80 items, one of them without text, 300 users, a tokenizer and models of both kinds."""
    folder, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    texts = {item: text_of(item) if item != TEXTLESS else {} for item in range(ITEMS)}
    written = [encoding.item_text(fields) for fields in texts.values()]
    rows = HashEncoder().encode([text or " " for text in written]).astype(np.float32)
    rows[TEXTLESS] = 0
    lists = {user: ((ITEMS - 1) * rng.random(rng.integers(3, 12)) ** 2).astype(int).tolist() for user in range(300)}
    data = folder / "data"
    dump(data / "train.pkl", {user: items[:-1] for user, items in lists.items()})
    dump(data / "test.pkl", lists)
    dump(data / "item_text_dict.pkl", texts)
    np.save(data / "item_text_embeddings.npy", rows)
    (data / "item_ids.jsonl").write_text(
        "".join(json.dumps({"id": item, "item": name_of(item)}) + "\n" for item in range(ITEMS))
    )
    torch.manual_seed(0)
    for name, whitens in (("whitens", True), ("plain", False)):
        tokenizer = AutoEncoder(WIDTH, whitens).eval()
        tokenizer.start_from(whiten(rows) if whitens else rows)
        save_state(folder / f"{name}.pt", tokenizer.state_dict(), {})
    for predicts in ("codes", "items"):
        model = RecGPT(RecGPTConfig(1, 32, 2, WIDTH, 32, predicts=predicts)).eval()
        config = {"config": {"heads": 2, "predicts": predicts}}
        save_state(folder / f"{predicts}.pt", model.state_dict(), config)
    return folder


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    for script in (bundles, bundle_script):
        monkeypatch.setattr(script, "load_encoder", lambda name, device: HashEncoder())


@pytest.fixture
def make(shop, tmp_path, monkeypatch):
    """Make a bundle as the command does, and open it."""

    def made(rank_by: str = "blend", predicts: str = "codes", tokenizer: str = "whitens", name="bundle") -> Recommender:
        flags = ["--dataset", shop / "data", "--rank_by", rank_by, "--output", tmp_path / name, "--encoder", "hash"]
        flags += ["--ckpt_path", shop / f"{predicts}.pt", "--vae_ckpt", shop / f"{tokenizer}.pt", "--device", "cpu"]
        call(monkeypatch, bundle_script, *flags)
        return Recommender.open(tmp_path / name)

    return made


def call(monkeypatch, script, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["serving", *map(str, arguments)])
    script.main()


def ids(lists) -> list[list]:
    return [[one.id for one in found] for found in lists]


# What is recommended


@pytest.mark.parametrize("tokenizer", ["whitens", "plain"])
@pytest.mark.parametrize("predicts", ["codes", "items"])
@pytest.mark.parametrize("rank_by", RANKINGS)
def test_lists_and_probabilities_are_those_of_the_parts(shop, make, rank_by, predicts, tokenizer):
    """The scores of model and blend as predict.py computes them, with whole histories as the log."""
    recommender = make(rank_by, predicts, tokenizer)
    lists = [[1, 2, 1, 5], [3], list(range(40)), [TEXTLESS, 4]]
    histories, bundle = Sequences.of(*lists), recommender.bundle
    rows = np.load(shop / "data/item_text_embeddings.npy")
    said = None
    if rank_by in ("blend", "model"):
        read = whiten(rows) if tokenizer == "whitens" else rows
        catalog = Catalog(bundle.tokenizer.tokenize(read), read)
        said = scores_of_all(bundle.model, catalog, 8, histories)
    if rank_by == "model":
        scores = said
    else:
        (blend,) = load_blends(bundle.folder / "blend.json").values()
        log = None if rank_by == "text" else Sequences.of(*np.load(shop / "data/test.pkl", allow_pickle=True).values())
        domain = Domain.of(Statistics.of(text_rows(rows), log))
        scores = Blender(blend, domain, np.arange(ITEMS)).scores(histories, said)
    named = [[name_of(item) for item in items] for items in lists]
    for exclude in (False, True):
        kept = scores.double().numpy().copy()
        kept[:, TEXTLESS] = -np.inf
        for row, items in enumerate(lists if exclude else ()):
            kept[row, items] = -np.inf
        found = recommender.recommend(named, k=6, exclude_history=exclude)
        best = -np.sort(-kept, axis=1)[:, :6]
        places = [[int(one.id[1:]) for one in row] for row in found]
        np.testing.assert_allclose(np.take_along_axis(kept, np.array(places), 1), best, rtol=1e-4, atol=1e-4)
        chances = np.take_along_axis(softmax(kept, axis=1), np.array(places), 1)
        np.testing.assert_allclose([[one.probability for one in row] for row in found], chances, rtol=1e-3)
        assert [one.title for one in found[0]] == [f"Thing {item}" for item in places[0]]


@pytest.mark.parametrize("tokenizer", ["whitens", "plain"])
def test_texts_of_a_catalog_that_is_large_enough_are_whitened(shop, make, monkeypatch, tokenizer):
    """And those of a few items are not: all would be equally far from each other, and nearer to any new one."""
    rows = np.load(shop / "data/item_text_embeddings.npy")
    np.testing.assert_allclose(make("text", name="few").view().domain.rows, whitening.unit_rows(rows), atol=1e-6)
    monkeypatch.setattr(whitening, "PER_DIRECTION", 2)
    test_lists_and_probabilities_are_those_of_the_parts(shop, make, "blend", "codes", tokenizer)
    bundle = Recommender.open(Path(make("blend", "codes", tokenizer, "white").bundle.path.parent))
    np.testing.assert_allclose(bundle.view().domain.rows, whiten(rows), atol=1e-6)
    assert ("embeddings" in bundle.bundle.store.widths) == (tokenizer == "plain")


@pytest.mark.parametrize("rank_by", ["model", "text"])
def test_an_item_that_is_typed_counts_as_the_same_item_of_the_catalog(make, rank_by):
    """Beside what concerns its own place in the history, which a blend looks at."""
    recommender = make(rank_by)
    found, expected = (
        {one.id: one.probability for one in recommender.recommend([["B003", entry]], k=ITEMS)[0] if one.id != "B005"}
        for entry in (text_of(5), "B005")
    )
    scale = sum(expected.values()) / sum(found.values())
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[item] * scale for item in expected], list(expected.values()), rtol=1e-4)
    with pytest.raises(ValueError, match="no field 'colour'; they have title, brand"):
        recommender.recommend([[{"colour": "red"}]])


def test_what_may_be_recommended(make):
    recommender = make("log")
    history = ["B001", "B002"]
    (every,) = ids(recommender.recommend([history], k=ITEMS))
    assert len(every) == ITEMS - 3 and not {*history, "B007"} & set(every)  # those of the history, and the textless
    (some,) = ids(recommender.recommend([history], candidates=["B009", "B001", "B003"], k=9))
    assert some == [item for item in every if item in ("B009", "B003")]
    (others,) = ids(recommender.recommend([history], exclude=every[:4], k=9))
    assert others == every[4:13]
    (with_own,) = recommender.recommend([history], k=ITEMS, exclude_history=False)
    assert {one.id for one in with_own} == {*every, *history}
    assert sum(one.probability for one in with_own) == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="no candidate is left"):
        recommender.recommend([history], candidates=["B007"])


def test_reasons_are_the_likeness_of_texts_and_what_followed_in_the_log(make):
    recommender = make("log")
    rows, log = recommender.view().domain.rows, recommender.bundle.log[0]
    ((first, *_),) = recommender.recommend([["B001", "B002", "B003", {"title": "A"}]], k=3, explain=True)
    number, strengths = int(first.id[1:]), []
    assert 1 <= len(first.because) <= 2
    for reason in first.because:
        if reason.id is None:
            assert reason.title == "A" and reason.followed == 0
            continue
        own = int(reason.id[1:])
        assert reason.similarity == pytest.approx(float(rows[own] @ rows[number]), abs=1e-5)
        assert reason.followed == pytest.approx(float(log.transitions[own, number]), abs=1e-6)
    strengths = [max(0, reason.similarity) + reason.followed**0.5 for reason in first.because]
    assert strengths == sorted(strengths, reverse=True)
    assert recommender.explain(["B001"], first.id)[0].id == "B001"
    nearest = recommender.similar_items("B004", k=3)
    cosines = rows @ rows[4]
    cosines[[4, TEXTLESS]] = -2
    assert [item.id for item, _ in nearest] == [name_of(item) for item in np.argsort(-cosines)[:3]]
    assert recommender.similar_items(text_of(4), k=1)[0][0].id == "B004"


def test_a_title_alone_stands_for_the_item_that_has_it(make):
    recommender = make("log")
    known, typed = recommender.recommend([["B001", "B004"], ["B001", {"title": "thing  4"}]], explain=True)
    assert known == typed
    (other,) = recommender.recommend([["B001", {"title": "thing 4", "brand": "Another"}]], k=ITEMS)
    assert "B004" in [one.id for one in other]
    assert recommender.recommend([["B001", {"title": "Thing 4", "brand": ""}]], explain=True) == [known]
    kept = recommender.snapshot()
    recommender.update_items([("B004", {"brand": "Another"})])
    assert kept.recommend([["B001", {"title": "thing  4"}]], explain=True) == [known]
    with pytest.raises(ValueError, match="no item has the id 'Thing 5'; as a title it is given as {.title.: …}"):
        recommender.recommend([["Thing 5"]])
    recommender.remove_items(["B004"])
    (new,) = recommender.recommend([["B001", {"title": "thing 4"}]], explain=True)
    assert new != known and not any(reason.id == "B004" for one in new for reason in one.because)
    for empty in ({}, {"title": ""}, {"brand": None}):
        with pytest.raises(ValueError, match="an item of the history has no text"):
            recommender.recommend([["B001", empty]])


def test_what_is_in_stock_may_name_what_no_item_has(make):
    recommender = make("log")
    stock = ["B003", "gone", "B004"]
    with pytest.raises(ValueError, match="no item has the id 'gone'"):
        recommender.recommend([["B001"]], candidates=stock)
    assert set(ids(recommender.recommend([["B001"]], candidates=stock, skip_unknown=True))[0]) == {"B003", "B004"}
    assert ids(recommender.recommend([["B001"]], candidates=stock, exclude=stock[1:], skip_unknown=True)) == [["B003"]]
    with pytest.raises(ValueError, match="no candidate is left"):
        recommender.recommend([["B001"]], candidates=["gone"], skip_unknown=True)


def test_titles_are_texts_that_are_called_so(shop, tmp_path, monkeypatch):
    """A price is none, a title is one wherever it stands, and it changes with its field."""
    (tmp_path / "products.csv").write_text("id,price,name\nB001,3,One\nB002,4,\n")
    flags = ["--dataset", shop / "data", "--rank_by", "text", "--encoder", "hash", "--output", tmp_path / "bundle"]
    call(monkeypatch, bundle_script, *flags, "--items", tmp_path / "products.csv")
    recommender = Recommender.open(tmp_path / "bundle")
    recommender.update_items([("B002", {"title": None, "price": 5})])
    assert recommender.find("B002")[0].title == "Maker 2"
    recommender.update_items([("B002", {"name": "Two"})])
    assert recommender.find("two")[0].id == "B002"
    recommender.add_items([("N1", {"price": "3"})])
    assert recommender.find("N1")[0].title == "" and not recommender.find("3")


def test_who_gives_ids_needs_no_encoder(make, monkeypatch):
    """An encoder that fails is the fault of those alone who have given texts."""
    recommender = make("text")

    def fail(texts):
        raise InputError("the encoder is 7 wide")

    monkeypatch.setattr(recommender.bundle, "encode", fail)
    known, typed = recommender.answer([Request(["B001"], 3), Request([{"title": "New"}], 3)])
    assert len(known) == 3 and isinstance(typed, ValueError) and "7 wide" in str(typed)


def test_requests_that_differ_are_answered_together(make):
    """Each as if it had come alone, and the faults of some disturb no other."""
    recommender = make("blend")
    stock, some = [name_of(item) for item in range(40)], [name_of(item) for item in range(20, 60)]
    requests = [
        Request(["B001", "B002"], k=3),
        Request(["B001", "none"], k=3),
        Request(["B001", "none"], k=5, skip_unknown=True),
        Request(["none"], skip_unknown=True),
        Request([], k=2),
        Request(["B003", {"title": "Blue pen"}], candidates=stock, explain=True),
        Request(["B004"] * 60, k=7, exclude=some, exclude_history=False),
        Request(["B004"], k=0),
        Request(["B004"], candidates=[]),
        Request(["B004"], candidates=stock, exclude=some),
    ]
    found = recommender.answer(requests)
    faults = {1: "no item has the id 'none'", 4: "empty", 7: "k must be", 8: "no candidate is left"}
    for row, (request, one) in enumerate(zip(requests, found, strict=True)):
        if row in faults:
            assert isinstance(one, ValueError) and faults[row] in str(one)
            continue
        (alone,) = recommender.answer([request])
        assert [each.id for each in one] == [each.id for each in alone] and len(one) == (0 if row == 3 else request.k)
        np.testing.assert_allclose([each.probability for each in one], [each.probability for each in alone], rtol=1e-3)
        assert [each.because for each in one] == [each.because for each in alone]
    assert found[5][0].because and not found[0][0].because
    assert ids([found[2]]) == ids(recommender.recommend([["B001"]], k=5))


def test_ids_are_compared_as_tables_are_read(make):
    """Without outer blanks, and with accents in one form; and 7 is "7"."""
    recommender = make("text")
    recommender.add_items([("Cafe\u0301 ", {"title": "Coffee"}), (7, {"title": "Seven"})])
    assert recommender.find(" Caf\u00e9")[0].id == "Caf\u00e9" and recommender.has_item("Cafe\u0301")
    assert recommender.find("7")[0].id == 7
    with pytest.raises(ValueError, match="already"):
        recommender.add_items([("7", {"title": "Another"})])


# Changes


def test_items_come_and_go_and_no_number_is_given_twice(make):
    recommender = make("blend")
    other = Recommender.open(recommender.bundle.path.parent)  # as in another process
    (before,) = recommender.recommend([["B001", "B002"]], k=ITEMS)
    recommender.add_items([("new", {"title": "Thing 4", "brand": "Maker 4"})])  # the text of B004
    assert other.similar_items("new", k=1)[0][0].id == "B004"
    (after,) = other.recommend([["B001", "B002"]], k=ITEMS + 1)
    known = {one.id: one.probability for one in after}
    assert set(known) == {"new", *(one.id for one in before)}
    rest = 1 - known["new"]  # among the others nothing has changed
    for one in before:
        assert known[one.id] == pytest.approx(one.probability * rest, rel=1e-4)
    assert ids(other.recommend([["new"]], k=1))
    other.remove_items(["new"])
    assert [one.probability for one in recommender.recommend([["B001", "B002"]], k=ITEMS)[0]] == pytest.approx(
        [one.probability for one in before], rel=1e-4
    )
    with pytest.raises(ValueError, match="no item has the id 'new'"):
        recommender.recommend([["new"]])
    recommender.add_items([("new", {"title": "Thing 9"})])
    assert recommender.bundle.store.number("new") == ITEMS + 1


def test_an_item_whose_text_changes_keeps_what_the_log_says(make):
    recommender = make("log")
    histories = [["B001", "B003"], ["B003"], ["B010", "B002"]]
    before = recommender.recommend(histories, k=ITEMS)
    rows = HashEncoder().encode([encoding.item_text(text_of(item)) for item in (3, 10)])  # the same: nothing changes
    recommender.bundle.update([("B003", text_of(3))], rows[:1])
    recommender.bundle.update([("B003", text_of(3)), ("B010", text_of(10))], rows)
    after = recommender.recommend(histories, k=ITEMS)
    for one, other in zip(before, after, strict=True):
        assert {found.id: pytest.approx(found.probability, rel=1e-4) for found in one} == {
            found.id: found.probability for found in other
        }
    recommender.update_items([("B003", {"title": "Thing 20", "brand": "Maker 0"})])
    assert recommender.similar_items("B003", k=1)[0][0].id == "B020"
    assert {item.id for item in recommender.find("thing  20")} == {"B003", "B020"} and not recommender.find("Thing 3")


def test_the_log_grows_as_if_it_had_been_counted_with_the_new_numbers():
    rng = np.random.default_rng(1)
    lists = [rng.integers(0, 9, rng.integers(2, 8)).tolist() for _ in range(60)]
    moved = {11: 3, 10: 5}  # number -> number in the log
    renamed = [[{3: 11, 5: 10}.get(item, item) for item in items] for items in lists]
    grown, ease = grow_log(LogStatistics.of(Sequences.of(*lists), 9), None, 12, moved)
    counted = LogStatistics.of(Sequences.of(*renamed), 12)
    assert ease is None
    for name in ("transitions", "cosine"):
        np.testing.assert_allclose(getattr(grown, name).toarray(), getattr(counted, name).toarray(), rtol=1e-5)
    seen = sorted({item for items in renamed for item in items})
    ratio = grown.share[seen] / counted.share[seen]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_a_log_on_disk_is_the_same(tmp_path):
    lists = [[1, 2, 3], [2, 3], [3, 1, 0]] * 400
    domain = Domain.of(Statistics.of(np.eye(5, dtype=np.float32), Sequences.of(*lists)))
    save_log(tmp_path, domain.log, domain.ease)
    log, ease = load_log(tmp_path)
    np.testing.assert_array_equal(log.share, domain.log.share)
    np.testing.assert_array_equal(log.transitions.toarray(), domain.log.transitions.toarray())
    np.testing.assert_array_equal(ease.toarray(), domain.ease.toarray())
    for one, other in zip(log.eras, domain.log.eras, strict=True):
        np.testing.assert_array_equal(one, other)


def store(folder: Path) -> ItemStore:
    return ItemStore.create(folder, {"texts": (2, "float32")})


def put(items: ItemStore, *names, value: float = 1.0) -> None:
    rows = np.full((len(names), 2), value, dtype=np.float32)
    with items.writing():
        items.append([Item(name, f"{name}", {}) for name in names], {"texts": rows}, np.zeros(len(names), bool))


def killed_between_rows_and_commit(folder: Path) -> None:
    items = ItemStore(folder, {"texts": (2, "float32")})
    items._changing = lambda more: os.kill(os.getpid(), signal.SIGKILL)
    put(items, "lost", value=9.0)


def test_a_change_that_is_killed_leaves_nothing(tmp_path):
    items = store(tmp_path)
    put(items, "a", "b")
    mapped = items.array("texts", 2)
    process = multiprocessing.get_context("spawn").Process(target=killed_between_rows_and_commit, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and (tmp_path / "texts.bin").stat().st_size == 3 * 8
    assert items.state().numbers == 2 and items.number("lost") is None
    put(items, "c", value=3.0)
    assert items.number("c") == 2 and items.array("texts", 3)[:, 0].tolist() == [1, 1, 3]
    assert mapped.tolist() == [[1, 1], [1, 1]]


def test_an_id_is_text_or_a_number_as_it_came(tmp_path):
    items = store(tmp_path)
    put(items, 12, "007", "-3", "x" * 5000, "Ünïcödé 🛒")
    assert [items.number(name) for name in (12, "12", "007", 7, "-3", -3, "x" * 5000, "Ünïcödé 🛒")] == [
        *(0, 0, 1, None, 2, 2, 3, 4)
    ]
    assert [items.number(name) for name in ("012", 10**30, "1" * 400, "")] == [None] * 4
    with pytest.raises(InputError, match="there twice"):
        put(items, "a", "a")
    assert items.state().numbers == 5


def test_two_do_not_write_at_once(tmp_path):
    items = store(tmp_path)
    with items.writing(), pytest.raises(InputError, match="another process is changing"), items.writing():
        pass


def test_calls_while_the_catalog_changes(make):
    """From several threads: every answer is of the catalog as it was at some time."""
    recommender = make("blend", "items")
    stop, faults = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                (found,) = recommender.recommend([["B001"]], k=5)
                if len(found) != 5 or not all(0 < one.probability < 1 for one in found):
                    faults.append(found)
            except Exception as error:
                faults.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(8):
        recommender.add_items([(f"new {number}", {"title": f"Another {number}"})])
        recommender.remove_items([f"new {number}"])
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_bundle_that_is_made_anew_takes_the_place_of_the_earlier_one(make):
    recommender = make("text")
    first = recommender.bundle.folder
    (before,) = ids(recommender.recommend([["B001"]]))
    anew = make("log")
    assert ids(recommender.recommend([["B001"]])) == ids(anew.recommend([["B001"]])) != [before]
    assert not first.exists()


def test_what_a_new_bundle_does_not_have_is_told(make, capsys):
    recommender = make("text")
    recommender.add_items([(f"N{number}", {"title": "New"}) for number in range(5)])
    capsys.readouterr()
    make("text")
    said = "5 items of the earlier bundle are not in the data set, nor in the new one: N0, N1, N2 …"
    assert said in capsys.readouterr().out


def test_the_blend_of_predict_is_taken_where_it_was_fitted_to_the_same(shop, make, monkeypatch, capsys):
    import predict

    flags = ["--dataset", shop / "data", "--ckpt_path", shop / "codes.pt", "--vae_ckpt", shop / "whitens.pt"]
    call(monkeypatch, predict, *flags, "--blend", "--exclude_history", "--device", "cpu")
    path = shop / "data/blend.json"
    try:
        saved = json.loads(path.read_text())
        saved["blends"][WITH_NETWORK]["weights"]["popularity"] = 0.125  # which no fit finds
        save_json(path, saved)
        recommender = make("blend")
        assert recommender.bundle.blend.weights["popularity"] == 0.125
        assert make("blend", "items", name="other").bundle.blend.weights["popularity"] != 0.125
        monkeypatch.setattr(whitening, "PER_DIRECTION", 2)  # the texts are compared in another way
        assert make("blend", name="white").bundle.blend.weights["popularity"] != 0.125
        assert WITH_LOG in saved["blends"]
    finally:
        path.unlink()


# The commands


def test_a_history_is_typed(make, monkeypatch, capsys):
    bundle = make("blend").bundle.path.parent
    capsys.readouterr()
    call(monkeypatch, recommend, bundle, "--history", "B001", "thing 2", "Blue pen", "--k", 3)
    said = capsys.readouterr()
    assert said.out.count("Thing") >= 3 and "%" in said.out
    assert "'Blue pen' is neither an id nor a title" in said.err
    call(monkeypatch, recommend, bundle, "--history", "B001", "B002", "--k", 2, "--json")
    found = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in found] == ids(Recommender.open(bundle).recommend([["B001", "B002"]], k=2))[0]
    assert found[0]["because"][0].keys() == {"id", "title", "similarity", "followed"}
    call(monkeypatch, recommend, bundle, "--similar", "thing 4", "--k", 2, "--json")
    found = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in found] == [item.id for item, _ in Recommender.open(bundle).similar_items("B004", k=2)]
    call(monkeypatch, recommend, bundle, "--history", "b0O1", "--k", 1)
    assert "did you mean B0" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["jsonl", "csv", "without times.csv"])
def test_histories_of_a_file(make, tmp_path, monkeypatch, capsys, form):
    bundle, rng = make("log").bundle.path.parent, np.random.default_rng(2)
    lists = {f"user {user}": [name_of(item) for item in rng.integers(0, ITEMS, 5)] for user in range(600)}
    lists["user 3"][1] = "unknown"
    lists["user 4"] = ["unknown"]
    path, output = tmp_path / f"histories.{form}", tmp_path / "lists.jsonl"
    if form == "jsonl":
        path.write_text("".join(json.dumps({"user": user, "items": items}) + "\n" for user, items in lists.items()))
    else:
        rows = [(user, item, 100 - place) for user, items in lists.items() for place, item in enumerate(items[::-1])]
        names, width = ("user,item,time", 3) if form == "csv" else ("user,item", 2)
        rows = rows if form == "csv" else rows[::-1]
        path.write_text("".join(",".join(map(str, row[:width])) + "\n" for row in [names.split(","), *rows]))
    (tmp_path / "stock.txt").write_text("\n".join(["Item_ID", *(name_of(item) for item in range(40))]))
    flags = ["--histories", path, "--output", output, "--k", 4, "--candidates", tmp_path / "stock.txt"]
    call(monkeypatch, recommend, bundle, *flags)
    said, error = capsys.readouterr()
    assert "1 of 41 ids are those of no item, and were passed over; the first is 'Item_ID' in line 1" in error
    assert "items are recommended; 'B" in said
    assert "2 items of histories are not in the catalog" in said and "1 users have no item that is" in said
    written = [json.loads(line) for line in output.read_text().splitlines()]
    written = sorted(written, key=lambda line: list(lists).index(line["user"]))
    assert [line["user"] for line in written] == list(lists) and written[4]["items"] == []
    known = [[item for item in items if item != "unknown"] for items in lists.values()]
    stock = [name_of(item) for item in range(40)]
    expected = Recommender.open(bundle).recommend([items for items in known if items], k=4, candidates=stock)
    assert [line["items"] for line in written if line["items"]] == ids(expected)


def test_several_processes_share_the_users(make, tmp_path):
    """The file is that of one process, byte by byte."""
    bundle, rng = make("log").bundle.path.parent, np.random.default_rng(3)
    path = tmp_path / "h.jsonl"
    histories = [rng.integers(0, ITEMS, rng.integers(1, 9)).tolist() for _ in range(1100)]
    lines = ({"user": user, "items": [name_of(item) for item in items]} for user, items in enumerate(histories))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for start, output in ((["-m"], one), ([*torchrun, "-m"], two)):
        command = [sys.executable, *start, "serving.recommend", bundle, "--histories", path, "--output", output]
        done = subprocess.run([*map(str, command), "--device", "cpu"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"{output}: 1100 users" in done.stdout
    assert two.read_text() == one.read_text() and sorted(tmp_path.glob("*.jsonl*")) == [path, one, two]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    path, job = tmp_path / "out.jsonl", {"a": 1}
    with pytest.raises(KeyboardInterrupt), resumable_lines(path, job) as lines:
        lines.file.write("one\ntwo\nthr")
        lines.keep()
        raise KeyboardInterrupt
    assert not path.exists()
    with resumable_lines(path, job) as lines:
        assert lines.done == 2
        lines.file.write("three\n")
    assert path.read_text() == "one\ntwo\nthree\n" and sorted(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), resumable_lines(path, job) as lines:
        lines.file.write("one\n")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), resumable_lines(path, job) as lines:
        lines.file.write("a\nb\nc\n")
        raise KeyboardInterrupt
    with pytest.raises(Stopped), resumable_lines(path, job, together=2) as lines:
        assert lines.done == 4  # the fifth was made with others that are lost
        lines.file.write("c\n")
        raise Stopped("another process")
    with pytest.raises(DiskError), resumable_lines(path, job) as lines:
        assert lines.done == 5
        raise DiskError("full elsewhere")
    with resumable_lines(path, {"a": 2}) as lines:  # another job starts anew
        assert lines.done == 0
        lines.file.write("uno\n")
    assert path.read_text() == "uno\n"


def test_a_killed_run_counts_what_it_had_done(make, tmp_path, monkeypatch, capsys):
    bundle, path, output = make("text").bundle.path.parent, tmp_path / "h.jsonl", tmp_path / "lists.jsonl"
    lines = ({"user": user, "items": ["B001", "unknown"] if user % 2 else ["unknown"]} for user in range(600))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--histories", path, "--output", output]
    call(monkeypatch, recommend, bundle, *flags)
    said, whole = capsys.readouterr().out.splitlines(), output.read_text()
    said = said[next(number for number, line in enumerate(said) if "users/s" in line) :]
    assert "  600 items of histories are not in the catalog, and were skipped" in said
    assert "  300 users have no item that is, and got empty lists" in said and "50% of the lists" in said[-1]
    output.unlink()
    keep = Lines.keep

    def killed(lines):
        keep(lines)
        raise KeyboardInterrupt

    monkeypatch.setattr(Lines, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, recommend, bundle, *flags)
    monkeypatch.setattr(Lines, "keep", keep)
    capsys.readouterr()
    call(monkeypatch, recommend, bundle, *flags)
    again = capsys.readouterr().out.splitlines()
    assert "600 users, 256 of them by an earlier run" in again[0]
    assert again[1:] == said[1:] and output.read_text() == whole


def test_titles_cannot_command_a_terminal(make, monkeypatch, capsys):
    recommender = make("text")
    recommender.add_items([("N1", {"title": "Thing \x1b[2J\x9b2J 5"})])
    bundle = recommender.bundle.path.parent
    call(monkeypatch, recommend, bundle, "--similar", "N1", "--k", 3)
    call(monkeypatch, recommend, bundle, "--history", "N1", "--k", 3)
    call(monkeypatch, recommend, bundle, "--history", "Thing \x1b[2J\x9b2J 6", "--k", 3)
    assert not set("".join(capsys.readouterr())) & {"\x1b", "\x9b"}


def test_histories_that_cannot_be_read_leave_no_file(make, tmp_path, monkeypatch):
    bundle, path = make("text").bundle.path.parent, tmp_path / "odd.jsonl"
    for text, said in (("", "no history"), ('{"user": 1, "items": 5}\n', "line 1"), ("x", "line 1")):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            call(monkeypatch, recommend, bundle, "--histories", path, "--output", tmp_path / "out.jsonl")
        assert not [file for file in tmp_path.iterdir() if "out.jsonl" in file.name]


def test_only_what_is_a_bundles_own_is_removed(make):
    recommender = make("text")
    folder = recommender.bundle.path.parent
    (folder / "version-0000dead").mkdir()  # as a killed command leaves it
    (folder / "version-0000dead" / "whitening.npz").touch()
    (folder / ".bundle.json.host.1.partial").touch()
    make("text")
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == [".lock", "bundle.json", "version"]
    for name in ("notes", "version-notes", "version-0000beef", ".bundle.json"):
        (folder / name).mkdir()
        (folder / name / "mine.txt").touch()
        with pytest.raises(InputError, match=f"{name} is no file of a bundle"):
            make("text")
        (folder / name / "mine.txt").unlink()
        (folder / name).rmdir()
    (folder / "bundle.json").write_text('{"version": 2, "of": "another program"}')
    with pytest.raises(InputError, match="bundle.json is no file of a bundle"):
        make("text")


@pytest.mark.parametrize("texts", [{}, {0: {}}, {0: {1: "a"}}, {0: {"title": b"x"}}])
def test_what_could_not_be_opened_replaces_nothing(shop, make, tmp_path, monkeypatch, texts):
    recommender = make("text")
    (tmp_path / "data").mkdir()
    for path in (shop / "data").iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    (tmp_path / "data/item_text_dict.pkl").unlink()
    dump(tmp_path / "data/item_text_dict.pkl", texts)
    for output in (recommender.bundle.path.parent, tmp_path / "another"):
        with pytest.raises(InputError, match="text"):
            call(monkeypatch, bundle_script, "--dataset", tmp_path / "data", "--rank_by", "text", "--output", output)
    assert not (tmp_path / "another").exists()
    assert ids(recommender.recommend([["B001"]], k=3)) == ids(
        Recommender.open(tmp_path / "bundle").recommend([["B001"]], k=3)
    )


def test_a_make_that_fails_leaves_no_folder(make, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(making, "save_whitening", full)
    with pytest.raises(DiskError, match="version-.* could not be written"):
        make("text")
    assert not (tmp_path / "bundle").exists()


def test_a_check_sees_a_changed_byte(make, monkeypatch, capsys):
    recommender = make("log")
    recommender.add_items([("new", {"title": "New"})])
    folder = recommender.bundle.path.parent
    call(monkeypatch, bundle_script, "check", folder)
    assert f"{ITEMS + 1} items, and all of the bundle is whole" in capsys.readouterr().out
    path = recommender.bundle.folder / "texts.bin"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"is not as it was written, from byte {ITEMS * WIDTH * 4} on"):
        call(monkeypatch, bundle_script, "check", folder)
    recommender.bundle.store.connection().execute("UPDATE items SET fields = '[1' WHERE number = 3")
    with pytest.raises(InputError, match="item 3 is damaged"):
        recommender.find("B003")


@pytest.mark.parametrize(("part", "value"), [("indices", 10**6), ("indices", -1), ("indptr", 10**6), ("indptr", -5)])
def test_a_forged_matrix_is_refused(tmp_path, part, value):
    domain = Domain.of(Statistics.of(np.eye(5, dtype=np.float32), Sequences.of(*[[1, 2, 3], [2, 3]])))
    save_log(tmp_path, domain.log, None)
    forged = np.load(tmp_path / f"transitions.{part}.npy")
    forged[1] = value
    np.save(tmp_path / f"transitions.{part}.npy", forged)
    with pytest.raises(InputError, match="are not the parts of a matrix of 5 items"):
        load_log(tmp_path)


def test_an_update_keeps_the_fields_that_it_does_not_name(make):
    recommender = make("text")
    embedding = recommender.view().domain.rows[5].copy()
    recommender.update_items([("B005", {"brand": "Maker 0"})])  # as it is
    assert recommender.find("B005")[0].fields == text_of(5)
    assert recommender.view().change.numbers == ITEMS  # nothing was encoded
    rows = HashEncoder().encode([encoding.item_text(text_of(5))])
    recommender.bundle.update([("B005", {"brand": "Maker 0"})], rows)  # given, and so taken
    np.testing.assert_allclose(recommender.view().domain.rows[ITEMS], embedding, atol=1e-6)
    recommender.update_items([("B005", {"title": "Thing 6"})])
    assert recommender.find("B005")[0].fields == {"title": "Thing 6", "brand": "Maker 0"}


def test_an_update_can_empty_fields(make, tmp_path, monkeypatch, capsys):
    """None over HTTP, an empty cell in a table; a line of JSON names what it changes."""
    recommender = make("text")
    bundle = recommender.bundle.path.parent
    recommender.update_items([("B005", {"brand": None})])
    assert recommender.find("B005")[0].fields == {"title": "Thing 5"}
    recommender.update_items([("B005", {"title": " "})])
    assert recommender.find("B005")[0].fields == {}
    assert "B005" not in ids(recommender.recommend([["B001"]], k=ITEMS))[0]
    (tmp_path / "new.csv").write_text("id,brand,supplier\nB006,,S\nB008,Maker 9,S\n")
    call(monkeypatch, bundle_script, "update", bundle, "--items", tmp_path / "new.csv")
    said = capsys.readouterr().out
    assert "passed over supplier, since items have the fields title, brand alone" in said
    assert "2 items updated; 1 fields were emptied" in said
    assert recommender.find("B006")[0].fields == {"title": "Thing 6"}
    assert recommender.find("B008")[0].fields == {"title": "Thing 8", "brand": "Maker 9"}
    lines = ['{"id": "B009", "brand": "Maker 1"}', '{"id": "B010", "title": "Other"}', '{"id": "B011", "brand": null}']
    (tmp_path / "new.jsonl").write_text("\n".join(lines))
    call(monkeypatch, bundle_script, "update", bundle, "--items", tmp_path / "new.jsonl")
    (tmp_path / "new.jsonl").write_text('{"id": "B012", "brand": ""}\n')
    call(monkeypatch, bundle_script, "update", bundle, "--items", tmp_path / "new.jsonl")
    for item in (11, 12):
        assert recommender.find(name_of(item))[0].fields == {"title": f"Thing {item}"}
    assert recommender.find("B009")[0].fields == {"title": "Thing 9", "brand": "Maker 1"}
    assert recommender.find("B010")[0].fields == {"title": "Other", "brand": "Maker 0"}


@pytest.mark.parametrize("fields", [{"brand": "Maker 9"}, {}])
def test_no_update_is_lost_while_another_encodes(make, monkeypatch, fields):
    """What changes between the look at an item and the lock is looked at again."""
    recommender = make("text")
    first, second = recommender.bundle, Recommender.open(recommender.bundle.path.parent).bundle
    take, others = first.store.writing, [{"title": "Changed meanwhile"}]

    def writing():
        if others:
            second.update([("B005", others.pop())])
        return take()

    monkeypatch.setattr(first.store, "writing", writing)
    first.update([("B005", fields)])
    assert recommender.find("B005")[0].fields == {**text_of(5), "title": "Changed meanwhile", **fields}


def test_a_call_keeps_to_one_bundle_while_another_is_made(make):
    """Numbers of one catalog never meet the names of the other."""
    recommender = make("log")
    expected = ids(recommender.recommend([["B001", "B002"]]))
    view = recommender.view()
    anew = make("text")
    anew.bundle.remove(["B000"])
    anew.bundle.add([("Z", {"title": "z"})])
    recommender.view = lambda: view  # a call that began before
    assert ids(recommender.recommend([["B001", "B002"]], explain=True)) == expected
    del recommender.view
    kept = recommender.snapshot()
    (before,) = ids(kept.recommend([["B001"]], k=ITEMS))
    recommender.update_items([("B001", {"title": "Another"})])  # which gives it another number
    recommender.remove_items([before[0]])
    assert ids(kept.recommend([["B001"]], k=ITEMS)) == [before] and kept.has_item(before[0])
    assert not recommender.has_item(before[0])
    assert recommender.find("Z")[0].id == "Z" and not recommender.find("B000")
    recommender.remove_items(["Z"])
    assert not anew.has_item("Z")


def test_pipes_and_the_input_itself_are_not_replaced(make, tmp_path, monkeypatch):
    bundle, path = make("text").bundle.path.parent, tmp_path / "h.jsonl"
    path.write_text('{"user": 1, "items": ["B001"]}\n')
    with pytest.raises(InputError, match="is the file of --histories"):
        call(monkeypatch, recommend, bundle, "--histories", path, "--output", path)
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    call(monkeypatch, recommend, bundle, "--histories", path, "--output", tmp_path / "pipe")
    reader.join()
    assert json.loads(read[0])["user"] == 1 and (tmp_path / "pipe").is_fifo()


def test_items_of_json_lines_need_not_have_every_field(make, tmp_path, monkeypatch):
    recommender = make("text")
    (tmp_path / "new.jsonl").write_text('{"id": "N1", "title": "one"}\n{"id": "N1", "title": "two"}\n')
    call(monkeypatch, bundle_script, "add", recommender.bundle.path.parent, "--items", tmp_path / "new.jsonl")
    assert recommender.find("N1")[0].title == "two"
    (tmp_path / "gone.csv").write_text("id\nN1\n")
    call(monkeypatch, bundle_script, "remove", recommender.bundle.path.parent, "--items", tmp_path / "gone.csv")
    assert not recommender.has_item("N1") and not recommender.find("")
    with pytest.raises(InputError, match="is empty"):
        call(monkeypatch, recommend, recommender.bundle.path.parent, "--history", " ")


def test_words_and_items_that_no_file_takes(make):
    recommender = make("text")
    half = "half a pair \ud83d"
    assert not recommender.find(half) and not recommender.has_item(half)
    assert len(recommender.recommend([["B001", {"title": half}]], k=2)[0]) == 2
    for items in (["abc"], [("N", {"title": b"x"})], [(half, {"title": "x"})], [(5, {"title": "a"}), ("5", {})]):
        with pytest.raises(ValueError, match=r"pairs|field|id of an item|there twice"):
            recommender.add_items(items)
    for ids_of in ("exclude", "candidates"):
        with pytest.raises(ValueError, match="expected a list of ids, found 'B002'"):
            recommender.recommend([["B001"]], **{ids_of: "B002"})
    assert len(recommender.recommend([["B001"]], k=2**70)[0]) == ITEMS - 2


def test_items_are_changed_by_command(make, tmp_path, monkeypatch):
    recommender = make("text")
    bundle = recommender.bundle.path.parent
    (tmp_path / "new.csv").write_text("id,title,price\nN1,Thing 5,3\nN2,,4\n")
    call(monkeypatch, bundle_script, "add", bundle, "--items", tmp_path / "new.csv")
    assert recommender.find("N1")[0].fields == {"title": "Thing 5"} and recommender.find("N2")[0].title == ""
    assert "N2" not in ids(recommender.recommend([["B001"]], k=ITEMS + 2))[0]
    (tmp_path / "new.csv").write_text("id,title,brand\nN2,Other thing,Maker 1\n")
    call(monkeypatch, bundle_script, "update", bundle, "--items", tmp_path / "new.csv")
    assert recommender.find("other THING")[0].id == "N2"
    call(monkeypatch, bundle_script, "remove", bundle, "--ids", "N1", "B001")
    assert not recommender.find("N1") and not recommender.find("B001")


def test_items_are_filtered_by_their_fields(shop, tmp_path, monkeypatch, capsys):
    """By texts and by what --items adds, which is not encoded and may change."""
    rows = "".join(f"{name_of(item)},Another title,{item / 2},{'new' if item % 3 else ''}\n" for item in range(60))
    (tmp_path / "products.csv").write_text("id,title,price,state\n" + rows)
    flags = ["--dataset", shop / "data", "--rank_by", "text", "--encoder", "hash", "--output", tmp_path / "bundle"]
    call(monkeypatch, bundle_script, *flags, "--items", tmp_path / "products.csv")
    assert "further fields of 60 of 80 items: price, state" in capsys.readouterr().out
    recommender = Recommender.open(tmp_path / "bundle")
    assert recommender.find("B005")[0].fields == {**text_of(5), "price": "2.5", "state": "new"}

    def filtered(*conditions) -> set:
        flags = ["--history", "B079", "--k", 99, "--json", "--filter", *conditions]
        call(monkeypatch, recommend, tmp_path / "bundle", *flags)
        return {int(one["id"][1:]) for one in json.loads(capsys.readouterr().out) if one["id"].startswith("B")}

    assert filtered("price < 10") == {*range(20)} - {TEXTLESS}
    assert filtered("price < 10", "brand = 'Maker 1'") == {1, 6, 11, 16}
    assert filtered("price BETWEEN 1 AND 3 AND state IS NULL") == {3, 6}
    before = recommender.view().domain.rows[5].copy()
    recommender.update_items([("B005", {"price": 99})])
    assert recommender.find("B005")[0].fields["price"] == 99 and 5 not in filtered("price < 10")
    assert recommender.view().change.numbers == ITEMS  # nothing was encoded
    recommender.update_items([("B005", {"title": "Thing 5", "price": 98}), ("B006", {"title": "Other"})])
    np.testing.assert_allclose(recommender.view().domain.rows[ITEMS], before, atol=1e-6)
    recommender.add_items([("N", {"title": "Thing 100", "price": 1})])
    (tmp_path / "stock.txt").write_text("N\nB019\nCafe\u0301\n")
    recommender.add_items([("Caf\u00e9", {"title": "Thing 101", "price": 50})])
    flags = ["--history", "B001", "--filter", "price = 50", "--candidates", tmp_path / "stock.txt", "--json"]
    call(monkeypatch, recommend, tmp_path / "bundle", *flags)
    assert [one["id"] for one in json.loads(capsys.readouterr().out)] == ["Caf\u00e9"]
    flags = ["--history", "B001", "--filter", "price <= 1", "--candidates", tmp_path / "stock.txt", "--json"]
    call(monkeypatch, recommend, tmp_path / "bundle", *flags)
    assert [one["id"] for one in json.loads(capsys.readouterr().out)] == ["N"]
    growing = "replace(state, 'n', 'nnnn') = 'x'"  # could be repeated until no memory is left
    odd = {
        "prize < 1": "no column 'prize'",
        "price <": "filter price <",
        "price < 0": "none of",
        growing: "replace has",
    }
    for condition, said in odd.items():
        with pytest.raises(InputError, match=said):
            filtered(condition)
        with pytest.raises(ValueError, match=said):
            recommender.recommend([["B001"]], filter=[condition])
    recommender.update_items([("B011", {"price": "on request", "state": "half a pair \ud83d"})])
    with pytest.raises(ValueError, match=r"'price' of item 'B011' is 'on request', and no number, as 1 of 62 values"):
        recommender.recommend([["B001"]], filter=["price < 2"])
    found = filtered("TRY_CAST(price AS DOUBLE) < 2")
    assert found == {0, 1, 2, 3}
    (listed,) = recommender.recommend([["B079"]], k=99, filter=["TRY_CAST(price AS DOUBLE) < 2"])
    assert {int(one.id[1:]) for one in listed if one.id.startswith("B")} == found
    assert recommender.matching(["state = 'new'", "brand = 'Maker 1'"]) == (7, {"brand": 3, "state": 42})
    for strange in ("price < 2", 5, [5], [["price < 2"]], ["price < 2"] * 99, ["x" * 2000]):
        with pytest.raises(ValueError, match="filter is a list of"):
            recommender.recommend([["B001"]], filter=strange)


@pytest.mark.parametrize("lines", [True, False])
def test_fields_of_odd_names_are_filtered(shop, tmp_path, monkeypatch, lines):
    """No field takes the place of another, or of what the filter counts by."""
    rows = [
        {
            "id": name_of(item),
            "line_of_row": 100 - item,
            "line": item,
            "kept_0": item,
            "Price": item,
            "price": 99 - item,
        }
        for item in range(20)
    ]
    path = tmp_path / ("items.jsonl" if lines else "items.csv")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not lines:
        path.write_text(",".join(rows[0]) + "\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows))
    flags = ["--dataset", shop / "data", "--rank_by", "text", "--encoder", "hash", "--output", tmp_path / "bundle"]
    call(monkeypatch, bundle_script, *flags, "--items", path)
    recommender = Recommender.open(tmp_path / "bundle")
    for condition, expected in (("line_of_row > 95", 5), ("line < 3", 3), ("kept_0 < 3 AND line_of_row > 98", 2)):
        assert recommender.matching([condition])[0] == expected
    for condition in ('"Price" < 5', "price < 5"):
        with pytest.raises(ValueError, match="several columns are called '[Pp]rice' but for upper"):
            recommender.matching([condition])


@pytest.mark.parametrize("kind", ["INTEGER[30000][30000]", "VARCHAR[]", "STRUCT(x INTEGER)", "MAP(INTEGER, INTEGER)"])
def test_no_condition_takes_much_memory(make, kind):
    recommender = make("text")
    for cast in ("CAST", "TRY_CAST"):
        with pytest.raises(ValueError, match="has no place here"):
            recommender.matching([f"{cast}(title AS {kind}) IS NULL"])
    for odd, said in (("title = '\ud83d'", "list of at most"), ("title.a = 'x'", "no column 'title.a'")):
        with pytest.raises(ValueError, match=said):
            recommender.matching([odd])
    assert recommender.matching(["brand::VARCHAR LIKE '%2' AND title IS NOT NULL"])[0] == 15  # of 16 one has no text


def test_damage_is_no_fault_of_the_caller(make):
    recommender = make("text")
    altered("UPDATE items SET fields = '{broken' WHERE number = 30")(recommender.bundle.folder / "items.sqlite")
    with pytest.raises(InputError, match="item 30 is damaged"):
        recommender.recommend([["B001"]], filter=["brand = 'Maker 1'"])
    altered("DELETE FROM items WHERE number = 30")(recommender.bundle.folder / "items.sqlite")
    with pytest.raises(InputError, match="it lacks items"):
        recommender.recommend([["B001"]], filter=["brand = 'Maker 1'"])


def test_an_article_number_is_no_number(shop, tmp_path, monkeypatch):
    (tmp_path / "products.csv").write_text("id,ean\nB001,007\nB002,7\nB003,12\n")
    flags = ["--dataset", shop / "data", "--rank_by", "text", "--encoder", "hash", "--output", tmp_path / "bundle"]
    call(monkeypatch, bundle_script, *flags, "--items", tmp_path / "products.csv")
    recommender = Recommender.open(tmp_path / "bundle")
    assert ids(recommender.recommend([["B005"]], filter=["ean = '7'"])) == [["B002"]]
    assert ids(recommender.recommend([["B005"]], filter=["ean = '007'"])) == [["B001"]]
    with pytest.raises(ValueError, match="Cannot compare values of type VARCHAR"):
        recommender.matching(["ean < 10"])
    assert recommender.matching(["TRY_CAST(ean AS INTEGER) < 10"]) == (2, {"ean": ITEMS - 3})


# Bad input


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("add BUNDLE --items none.csv", "does not exist"),
        ("add BUNDLE --items known.csv", "an item has the id 'B001' already"),
        ("add BUNDLE --items other.csv", "none of the columns title, brand"),
        ("update BUNDLE --items new.csv", "no item has the id 'N1'"),
        ("remove BUNDLE --ids N1", "no item has the id 'N1'"),
        ("add BUNDLE --ids N1", "--items is required"),
        ("--dataset DATA --rank_by blend --output out", "needs --ckpt_path"),
        ("--dataset none --output out", "no directory"),
        ("--dataset DATA --output .", "is no file of a bundle"),
        ("remove BUNDLE --items new.csv", "no item has the id 'N1'"),
        ("--dataset DATA --rank_by text --output out --encoder other", "a cosine of"),
        ("--dataset DATA --rank_by text --output out --encoder wide", "is 5 wide, and"),
    ],
)
def test_what_bundle_refuses(shop, make, tmp_path, monkeypatch, capsys, flags, said):
    bundle = make("text").bundle
    rows = {"other": lambda texts: HashEncoder().encode(texts)[:, ::-1], "wide": lambda texts: np.ones((len(texts), 5))}
    others = {
        name: SimpleNamespace(encode=lambda texts, found=found, **_: found(texts)) for name, found in rows.items()
    }
    monkeypatch.setattr(bundle_script, "load_encoder", lambda name, device: others[name])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "known.csv").write_text("id,title\nN1,New\nB001,Old\n")
    (tmp_path / "new.csv").write_text("id,title\nN1,New\n")
    (tmp_path / "other.csv").write_text("id,colour\nN1,red\n")
    state = bundle.store.state()
    words = flags.replace("BUNDLE", str(bundle.path.parent)).replace("DATA", str(shop / "data")).split()
    monkeypatch.setattr(sys, "argv", ["serving.bundle", *words])
    with pytest.raises(SystemExit) as stopped:
        run(bundle_script.main)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and said in message and "Traceback" not in message
    assert bundle.store.state().generation == state.generation and not (tmp_path / "out").exists()


def header(**others):
    def write(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **others}))

    return write


def altered(statement: str):
    def alter(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(statement)

    return alter


def damaged_bundles():
    yield "bundle.json", header(folder="../../x"), "'folder' is '../../x'"
    yield "bundle.json", header(fields=[1]), "'fields' is"
    yield "bundle.json", header(arrays={"texts": [10**12, "float32"]}), "'arrays' is"
    yield "bundle.json", header(arrays={"texts": [-1, "float32"]}), "'arrays' is"
    yield "bundle.json", header(arrays={"texts": [32, "object"]}), "'arrays' is"
    yield "bundle.json", header(files={"/etc/passwd": "x"}), "'files' is"
    yield "bundle.json", header(fields=["title", "brnad"]), "not as it was written"
    yield "bundle.json", header(files={"a\0b": "x"}), "'files' is"
    yield "bundle.json", header(folder="version-\0"), "'folder' is"
    yield "bundle.json", lambda path: path.write_text("{"), "not readable JSON"
    yield "bundle.json", lambda path: path.write_text('{"version": 9}'), "of version 9"
    yield "bundle.json", lambda path: path.write_text('{"version": 2}'), "'folder' is None"
    yield "*/model/model.safetensors", lambda path: path.write_bytes(b"x" * 100), "is not the file"
    yield "*/model/config.json", Path.unlink, "does not exist"
    yield "*/items.sqlite", Path.unlink, "does not exist"
    yield "*/items.sqlite", lambda path: path.write_bytes(b"x" * 5000), "cannot be read"
    yield "*/texts.bin", lambda path: path.write_bytes(b""), "fewer than 80 rows"
    yield "*/texts.bin", lambda path: path.write_bytes(b"\xff" * path.stat().st_size), "damaged"
    yield (
        "*/codes.bin",
        lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
        "codes.bin has codes that are none",
    )
    yield "*/items.sqlite", altered("UPDATE catalog SET numbers = 'many'"), "its numbers do not fit"
    yield "*/items.sqlite", altered("UPDATE catalog SET numbers = 79"), "its numbers do not fit"
    yield "*/items.sqlite", altered("DELETE FROM catalog"), "cannot be read|its numbers do not fit"
    yield "*/items.sqlite", altered("UPDATE items SET logged = 'x' WHERE number = 5"), "its numbers do not fit"
    yield "*/items.sqlite", altered("UPDATE items SET logged = -5 WHERE number = 5"), "its numbers do not fit"
    yield "*/items.sqlite", altered("UPDATE items SET state = 'x' WHERE number = 5"), "its numbers do not fit"


@pytest.mark.parametrize(("name", "hurt", "said"), list(damaged_bundles()))
def test_a_damaged_bundle_is_refused(make, name, hurt, said):
    folder = make("blend").bundle.path.parent
    hurt(next(folder.glob(name)))
    with pytest.raises(InputError, match=said):
        Recommender.open(folder).recommend([["B001"]])


def test_pickles_in_a_bundle_are_not_run(make):
    folder = make("log").bundle.folder
    np.save(folder / "whitening.npz", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"is not the file|cannot be read"):
        bundles.load_whitening(folder / "whitening.npz.npy", WIDTH)


entries = st.one_of(
    st.sampled_from([name_of(item) for item in range(ITEMS)]),
    st.text(max_size=9),
    st.integers(),
    st.floats(),
    st.none(),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["title", "brand", "x"]), st.one_of(st.text(), st.none(), st.integers())),
)
ROOMY = st.lists(st.one_of(st.lists(entries, max_size=6), st.text(max_size=3), st.none()), max_size=4)


def test_odd_histories_get_answers_or_one_sentence(make):
    """A thousand of them."""
    recommender = make("blend")

    @given(ROOMY)
    @settings(deadline=None, max_examples=250)
    def check(histories):
        try:
            found = recommender.recommend(histories, k=3)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 300
        else:
            assert len(found) == len(histories) and all(len(row) == 3 for row in found)

    check()
    long = [name_of(item % ITEMS) for item in range(5000)]
    assert len(recommender.recommend([long[:60] * 80], k=3)[0]) == 3
    for odd in ("B001", {"title": "x"}, [[]], [["B001"], []]):
        with pytest.raises(ValueError, match="histor"):
            recommender.recommend(odd)
    for k in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match="k"):
            recommender.recommend([["B001"]], k=k)


def test_wrong_types_are_one_sentence(make):
    recommender = make("text")
    strange = [("exclude", None), *((name, odd) for name in ("exclude", "candidates") for odd in (5, {"B001": 1}))]
    for name, odd in strange:
        with pytest.raises(ValueError, match="expected a list of ids"):
            recommender.recommend([["B001"]], **{name: odd})
    for name in ("exclude_history", "explain", "skip_unknown"):
        with pytest.raises(ValueError, match=f"{name} is True or False, found 'no'"):
            recommender.recommend([["B001"]], **{name: "no"})
    deep = "x"
    for _ in range(900):
        deep = [deep]
    for items in (None, 5, [("N1", {"title": deep})], [("N1", {5: "x"})]):
        with pytest.raises(ValueError, match=r"list of pairs|field|dict of fields"):
            recommender.add_items(items)
    with pytest.raises(ValueError, match="expected a list of ids"):
        recommender.remove_items(None)
    for act in (recommender.find, recommender.suggest, Recommender.open):
        with pytest.raises(ValueError, match=r"found \['a'\]"):
            act(["a"])
    with pytest.raises(ValueError, match="device is"):
        Recommender.open(recommender.bundle.path.parent, "nodevice")


def test_a_table_with_odd_columns_is_read_as_the_flags_say(tmp_path):
    path = tmp_path / "h.txt"
    path.write_text("who;what;wann\nanna;B002;31/12/2020 10:00\nanna;B001;01/02/2020 09:00\n")
    with pytest.raises(InputError, match="--user_column"):
        list(read_histories(path))
    columns = {"user_column": "who", "item_column": "what", "time_column": "wann", "time_format": ["%d/%m/%Y %H:%M"]}
    assert list(read_histories(path, Reading(**columns))) == [("anna", ["B001", "B002"])]


def test_histories_that_cannot_be_read(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text('{"user": "a"}\n')
    with pytest.raises(InputError, match="line 1"):
        list(read_histories(path))
