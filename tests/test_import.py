"""import_dataset.py: files of many kinds to recommendations, every option on small input, and --check."""

import functools
import gzip
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch

import predict
from ae_trainer import AutoEncoder
from data_processing import import_dataset, make_dataset
from data_processing.parts.tables import Tables
from model import RecGPT, RecGPTConfig
from tests.conftest import ROOT, dump
from tests.test_data_processing import WIDTH, HashEncoder, load, write_lines, write_own_data
from utils.cli import run
from utils.errors import InputError
from utils.files import content

EVERYTHING = "--min_user_interactions 0 --min_item_interactions 0"
GENRE_FLAGS = "|".join("01" + "0" * 17)


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    monkeypatch.setattr("data_processing.parts.encoding.load_encoder", lambda name, device: HashEncoder())


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run a script's main() in the test's directory, with a command line as it is typed."""
    monkeypatch.chdir(tmp_path)

    def run_main(command: str, script=import_dataset) -> None:
        monkeypatch.setattr(sys, "argv", [script.__name__, *shlex.split(command), "--device", "cpu"])
        script.main()

    return run_main


@pytest.fixture
def refuse(call, capsys):
    """The command ends with exit code 2 and a message of one line that has the words."""

    def run_main(command: str, *said: str) -> None:
        with pytest.raises(SystemExit) as stopped:
            run(functools.partial(call, command))
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert stopped.value.code == 2
        for words in said:
            assert words in message, message
        assert not [path for path in Path().rglob("*") if path.name.startswith(".")]

    return run_main


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Flags for a tokenizer and a model, both small and random."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(AutoEncoder(WIDTH).state_dict(), folder / "vae.pt")
    torch.save(RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=WIDTH)).state_dict(), folder / "model.pt")
    return f"--vae_ckpt {folder}/vae.pt --ckpt_path {folder}/model.pt"


def write(name: str, text: str, encoding: str = "utf-8") -> None:
    content = text.encode(encoding)
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def write_small(rows: str, items: str = "a b c d") -> None:
    """Interactions such as "anna:a:3", user, item and time, and items with a title."""
    write("i.csv", "user,item,time\n" + "".join(row.replace(":", ",") + "\n" for row in rows.split()))
    write("m.csv", "item,title\n" + "".join(f"{item},title {item}\n" for item in items.split()))


SMALL = f"--interactions i.csv --items m.csv --output out {EVERYTHING} "


def made(folder: str = "out") -> dict[str, dict]:
    return {path.stem: load(path) for path in Path(folder).glob("*.pkl")}


def item_names(folder: str = "out") -> list:
    return [json.loads(line)["item"] for line in (Path(folder) / "item_ids.jsonl").read_text("utf-8").splitlines()]


# From files to recommendations

TITLES = ["Café, “Zürich”", 'a "b" c', "two\nlines", "naïve; |x|", "plain", "ünïcode 日本", "::colons::", "tab"]
EVENTS = [
    (user, item, 1600000000 + 7 * user + turn) for user in range(6) for turn, item in enumerate([user, 6, 3, 7, 1])
]


def quoted(*fields: object) -> str:
    return ",".join('"' + str(field).replace('"', '""') + '"' for field in fields) + "\r\n"


def write_csv() -> None:
    write("clicks.csv", "user,product_id,created_at\r\n" + "".join(quoted(f"ü, {u}", i, t) for u, i, t in EVENTS))
    write("items.csv", "product_id,title\r\n" + "".join(quoted(i, title) for i, title in enumerate(TITLES)))


def write_ml_100k() -> None:
    write("u.data", "".join(f"{u}\t{i + 1}\t3\t{t}\n" for u, i, t in EVENTS))
    items = (f"{i + 1}|Café {i} (1995)|01-Jan-1995||http://x/{i}|{GENRE_FLAGS}\n" for i in range(8))
    write("u.item", "".join(items), "latin-1")


def write_ml_1m() -> None:
    write("ratings.dat", "".join(f"{u}::{i}::5::{t}\n" for u, i, t in EVENTS))
    write("movies.dat", "".join(f"{i}::Amélie {i} (2001)::Drama|Children's\n" for i in range(8)), "latin-1")


def write_recbole() -> None:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    write("toys.inter", header + "".join(f"u{u}\tB{i}\t1.0\t{t}.0\n" for u, i, t in EVENTS))
    header = "item_id:token\ttitle:token_seq\tprice:float\n"
    write("toys.item", header + "".join(f'B{i}\t"quoted" 5" {i}\t1.5\n' for i in range(8)))


def write_parquet() -> None:
    rows = ", ".join(f"({u}, {i}, make_timestamp({t}000000))" for u, i, t in EVENTS)
    query = f"SELECT * FROM (VALUES {rows}) e(visitorid, itemid, timestamp)"
    duckdb.sql(query).write_parquet("e.parquet")
    duckdb.sql("SELECT range AS id, 'title ' || range AS title, ['x', 'y'] AS tags FROM range(8)").write_parquet(
        "i.parquet"
    )


def write_json() -> None:
    keys = ("user_id", "parent_asin", "timestamp")
    write_lines(Path("r.jsonl.gz"), [dict(zip(keys, (f"u{u}", f"B{i}", t * 1000), strict=True)) for u, i, t in EVENTS])
    write_lines(
        Path("m.jsonl"), [{"parent_asin": f"B{i}", "title": t, "list": [f"part {i}"]} for i, t in enumerate(TITLES)]
    )


@pytest.mark.parametrize(
    ("prepare", "files", "users", "items", "text"),
    [
        (write_csv, "clicks.csv items.csv", "ü, {}", "{}", {"title": TITLES[2]}),
        (write_ml_100k, "u.data u.item", "{}", "{1}", {"title": "Café 2 (1995)", "genres": "Action"}),
        (write_ml_1m, "ratings.dat movies.dat", "{}", "{}", {"title": "Amélie 2 (2001)", "genres": "Drama|Children's"}),
        (write_recbole, "toys.inter toys.item", "u{}", "B{}", {"title": '"quoted" 5" 2'}),
        (write_parquet, "e.parquet i.parquet", "{}", "{}", {"title": "title 2", "tags": ["x", "y"]}),
        (write_json, "r.jsonl.gz m.jsonl", "u{}", "B{}", {"title": TITLES[2], "list": ["part 2"]}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_from_files_to_recommendations(call, weights, prepare, files, users, items, text):
    prepare()
    interactions, catalog = files.split()
    call(f"--interactions {interactions} --items {catalog} --output out {EVERYTHING}")
    call("--check out")
    found = made()
    named = [number(users.format(user)) for user in range(6)]
    assert found["test"] == {named[user]: [user, 6, 3, 7, 1] for user in range(6)}
    assert found["train"] == {user: listed[:-1] for user, listed in found["test"].items()}
    assert found["test_times"][named[2]] == [1600000014 + turn for turn in range(5)]
    assert found["item_text_dict"][2] == text
    names = [number(items.format(item, item + 1)) for item in range(8)]
    assert item_names() == names

    call(f"--dataset out {weights} --topk 8 --output lists.jsonl", predict)
    lists = [json.loads(line) for line in Path("lists.jsonl").read_text().splitlines()]
    assert [found["user"] for found in lists] == named
    for found in lists:
        assert sorted(item_names()[item] for item in found["items"]) == sorted(names)


def number(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


# Splits, repeats, filters

ROWS = "x:a:5 y:b:1 x:b:2 y:c:9 x:c:5 z:d:4 y:a:3 x:a:8"


@pytest.mark.parametrize(
    ("flags", "train", "test", "times"),
    [
        ("", {"x": [1, 0, 2], "y": [1, 0]}, {"x": [1, 0, 2, 0], "y": [1, 0, 2]}, {"x": [2, 5, 5, 8], "y": [1, 3, 9]}),
        ("--split time --split_time 5", {"y": [1, 0]}, {"x": [1, 0], "y": [1, 0, 2]}, {"x": [2, 5], "y": [1, 3, 9]}),
        ("--split time", {"x": [1, 0, 2, 0], "y": [1, 0]}, {"y": [1, 0, 2]}, {"y": [1, 3, 9]}),
        ("--split time --split_time 0.5", {"y": [1, 0]}, {"x": [1, 0], "y": [1, 0, 2]}, {"x": [2, 5], "y": [1, 3, 9]}),
        ("--split users --test_share 1", {}, {"x": [1, 0, 2, 0], "y": [1, 0, 2]}, {"x": [2, 5, 5, 8], "y": [1, 3, 9]}),
        ("--split users --test_share 0", {"x": [1, 0, 2, 0], "y": [1, 0, 2]}, {}, {}),
        ("--split users --test_share .5", {"y": [1, 0, 2]}, {"x": [1, 0, 2, 0]}, {"x": [2, 5, 5, 8]}),
    ],
)
def test_splits(call, flags, train, test, times):
    write_small(ROWS)
    call(SMALL + flags)
    found = made()
    assert (found["train"], found["test"], found["test_times"]) == (train, test, times)
    assert (list(found["train"]), list(found["test"])) == (list(train), list(test))
    for name in ("train", "test"):
        assert list(found[f"cold_{name}"]) == list(found[name])
    if test:
        call("--check out")


@pytest.mark.parametrize(
    ("repeats", "listed"),
    [("keep", [0, 0, 1, 0, 1, 1]), ("first", [0, 1]), ("last", [0, 1]), ("consecutive", [0, 1, 0, 1])],
)
def test_repeats(call, repeats, listed):
    write_small("x:a:1 x:a:2 x:b:3 x:a:4 x:b:5 x:b:6")
    call(f"{SMALL} --repeats {repeats}")
    assert made()["test"] == {"x": listed}
    expected = {"keep": [1, 2, 3, 4, 5, 6], "first": [1, 3], "last": [4, 6], "consecutive": [1, 3, 4, 5]}
    assert made()["test_times"] == {"x": expected[repeats]}


CORE = "x:a:1 x:b:2 y:a:1 y:b:2 z:b:1 z:c:2 w:c:9"  # w leaves, so that c has one user, so that z has one item


@pytest.mark.parametrize(
    ("users", "items", "lists", "names"),
    [
        (2, 2, {"x": ["a", "b"], "y": ["a", "b"]}, ["a", "b"]),
        (2, 1, {"x": ["a", "b"], "y": ["a", "b"], "z": ["b", "c"]}, ["a", "b", "c"]),
        (2, 0, {"x": ["a", "b"], "y": ["a", "b"], "z": ["b", "c"]}, ["a", "b", "c", "d"]),
        (0, 3, {}, None),
        (0, 0, {"x": ["a", "b"], "y": ["a", "b"], "z": ["b", "c"]}, ["a", "b", "c", "d"]),
    ],
)
def test_filters_until_nothing_changes(call, users, items, lists, names):
    write_small(CORE)
    command = f"--interactions i.csv --items m.csv --output out --min_user_interactions {users} "
    if names is None:
        with pytest.raises(InputError, match="none of 3 users has a history and a target with --split leave_last_out"):
            call(f"{command} --min_item_interactions {items}")
        return
    call(f"{command} --min_item_interactions {items}")
    assert item_names() == names
    assert {user: [names[item] for item in listed] for user, listed in made()["test"].items()} == lists
    assert len(np.load("out/item_text_embeddings.npy")) == len(names)


def test_items_without_text_unknown_and_twice(call, capsys):
    write_small("x:a:1 x:new:2 x:b:3 x:other:4")
    write("m.csv", "item,title,brand\na,old,\nb,,\nc,,\na,new,Bic\nd,nobody had it,\n")
    call(SMALL)
    told = capsys.readouterr().out
    assert item_names() == ["a", "b", "d", "new", "other"]
    assert made()["test"] == {"x": [0, 3, 1, 4]}
    assert made()["item_text_dict"] == {0: {"title": "new", "brand": "Bic"}, 2: {"title": "nobody had it"}}
    assert np.load("out/item_text_embeddings.npy").any(axis=1).tolist() == [True, False, True, False, False]
    assert "2 interactions with items that m.csv does not have" in told
    assert "1 rows of items that a later row replaces" in told
    assert "3 items with a zero embedding" in told


def test_given_embeddings_have_the_rows_of_the_items_file(call):
    write_small("x:c:1 x:new:2 x:a:3", items="a b c a")
    given = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float16)
    np.save("given.npy", given)
    Path("given.json").write_text('{"encoder": "mine"}')
    call(
        "--interactions i.csv --items m.csv --output out --min_user_interactions 1 --min_item_interactions 1 "
        "--embeddings given.npy"
    )
    assert item_names() == ["a", "c", "new"]
    np.testing.assert_array_equal(np.load("out/item_text_embeddings.npy"), [given[3], given[2], np.zeros(WIDTH)])
    metadata = json.loads(Path("out/item_text_embeddings.json").read_text())
    made_of = {"texts": content("out/item_text_dict.pkl"), "files": {".npy": content("out/item_text_embeddings.npy")}}
    assert metadata == {"encoder": "mine", "rows": 3, "width": WIDTH, **made_of}
    call("--check out")


def test_columns_times_and_names(call, capsys):
    """No time: file order. Milliseconds, dates with offsets, odd column names; 007 is a name, not a number."""
    write("i.csv", "who;what\n007;1\n8;2\n007;2\n007;1\n")
    write("m.csv", "what,words,more\n1,one,I\n2,two,II\n")
    command = SMALL + "--user_column who --item_column what --text_columns words"
    call(command)
    assert "the order of its rows counts" in capsys.readouterr().out
    assert made()["test"] == {"007": [0, 1, 0]}
    assert "test_times" not in made()
    assert made()["item_text_dict"] == {0: {"words": "one"}, 1: {"words": "two"}}
    assert item_names() == [1, 2]

    write("i.csv", "who,what,when\n1,2,1700000001500\n1,1,1700000000000\n")
    call(command + " --time_column when")
    assert made()["test_times"] == {1: [1700000000.0, 1700000001.5]}
    write("i.csv", "who,what,when\n1,2,2023-01-31T12:30:00+02:00\n1,1,2023-01-31\n1,1,2023/02/01 00:00:01\n")
    call(command + " --time_column when")
    assert made()["test_times"] == {1: [1675123200, 1675161000, 1675209601]}
    assert made()["test"] == {1: [0, 1, 0]}
    call(command + " --time_column when --split time --split_time 2023-01-31T10:30:00Z")
    assert made()["test"] == {1: [0, 1]}


def test_blank_lines_in_front_are_no_names_of_columns(call):
    write("i.csv", "\r\n\r\nuser,item\r\nx,a\r\nx,b\r\n")
    write("m.csv", "\ufeff\nitem,title\na,one\nb,two\n")
    call(SMALL)
    assert made()["test"] == {"x": [0, 1]}
    assert item_names() == ["a", "b"]


def test_long_fields_that_look_like_rows(call):
    """Larger than what one thread of DuckDB takes at a time: the next one begins inside a field."""
    note = "u1,i5,zz,99\n" * 1600
    write("i.csv", "user,item,note,time\n" + "".join(f'u{k % 9},i{k % 5},"{note}",{k}\n' for k in range(480)))
    write("m.csv", "item,title\n" + "".join(f"i{k},item {k}\n" for k in range(5)))
    call(SMALL)
    assert made()["test"] == {f"u{user}": [k % 5 for k in range(user, 480, 9)] for user in range(9)}


def test_same_input_gives_the_same_bytes(call):
    write_csv()
    for folder in ("one", "two"):
        call(
            f"--interactions clicks.csv --items items.csv --output {folder} {EVERYTHING} --split users --test_share .5"
        )
    files = sorted(path.name for path in Path("one").iterdir())
    assert len(files) == 10
    assert [Path("one", name).read_bytes() for name in files] == [Path("two", name).read_bytes() for name in files]
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_killed_run_goes_on(call, monkeypatch):
    write_small(ROWS)
    with monkeypatch.context() as killed:
        killed.setattr(import_dataset, "save_histories", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(SMALL)
    assert Path(".out.duckdb").is_file()
    monkeypatch.setattr(Tables, "make", lambda tables, name, *_: tables.value(f"SELECT count(*) FROM {name}"))
    call(SMALL)
    assert made()["train"] == {"x": [1, 0, 2], "y": [1, 0]}
    assert not Path(".out.duckdb").exists()


# Bad input

HEAD = "user,item,time\n"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", ("i.csv is empty",)),
        (HEAD, ("i.csv has no row",)),
        (
            HEAD + ",a,1\n,a,2\n",
            ("i.csv: no row has a value in user and item and time", "--user_column, --item_column"),
        ),
        (HEAD + "x,,1\n\nx,NA,2\n", ("i.csv: no row has a value in user and item and time",)),
        (HEAD + 'x,"a\n",1\nx,b,May\n', ("i.csv, line 4: the time (time) is 'May'", "2023-01-31", "--time_column")),
        (HEAD + "x,a,\nx,b,\n", ("no row has a value in user and item and time", "--time_column")),
        (HEAD + "x,a,1\nx,b,2\nx,b,2023-01-31\n", ("line 4", "'2023-01-31', a date", "most others are not")),
        (HEAD + "x,a,1\nx,b,inf\n", ("line 3: the time (time) is 'inf'",)),
        (HEAD + "x,a,1600000000\nx,b,1500000000000\n", ("line 2", "1600000000, in another unit", "1500000000000")),
        (HEAD + "x,a,1\nx,b\n", ("i.csv, line 3: 2 columns, expected 3 (user, item, time)",)),
        (HEAD + "x,a,1\nx,b,c,2\n", ("i.csv, line 3: 4 columns",)),
        (HEAD + 'x,a,1\nx,"b,2\nx,c,3\n', ("i.csv, line 3: a quotation mark opens", "--no_quotes")),
        (HEAD + 'x,a,1\nx,"b"c,2\n', ("i.csv, line 3: quotation marks that do not enclose",)),
        (HEAD + "x,a,1\r\nx,b,2\n", ("i.csv cannot be read as csv: its lines end in more than one way",)),
        (
            "user,time\nx,1\n",
            ("no column has a usual name for the item", "--item_column", "The columns are user, time"),
        ),
        ("user,item,asin,time\nx,a,a,1\n", ("item may be item or asin", "--item_column")),
        ("user,item,date,ts\nx,a,1,1\n", ("time may be date or ts", "--time_column")),
        ("user,user,item\nx,a,1\n", ("two columns are called 'user'",)),
        (HEAD + "x,p,1\nx,q,2\n", ("m.csv has none of the items in i.csv ('a' there, 'p' here", "--item_column")),
        (HEAD + "x,a,1\ny,b,2\n", ("none of 2 users has a history and a target",)),
        (HEAD + "x,caf\xe9,1\n", ("i.csv is not utf-8: line 2 has b'\\xe9,1", "--encoding latin-1")),
        ('{"user": "x", "item": "a"}\n{"user": "x", "item": "\xe9"}\n', ("i.csv is not utf-8: line 2", "--encoding")),
        (HEAD + "x,a,1\nx," + "b" * 3_000_000 + ",1\n", ("a line is longer than 2 MB",)),
        ("PK\x03\x04", ("zip archive",)),
        ("\x1f\x8b\x08", ("name that ends in .gz",)),
        ("PAR1 and nothing", ("not a whole Parquet file",)),
        ('{"user": "x", "item": "a", "time": 1}\n{"user": "x", "item": "a"\n', ("i.csv, line 2: not valid JSON",)),
        ('{"user": "x", "item": "a"}\n{"user": "x", "item": "\\ud83d"}\n', ("line 2: not valid JSON (half of",)),
        ('{"user": "x", "item": ' + "[" * 5000 + "]" * 5000 + "}\n", ("line 1: not valid JSON (lists in lists",)),
        ('{"user": "x", "item": null}\n{"user": "x", "item": null}\n', ("no row has a value in user and item.",)),
    ],
)
def test_bad_interactions(refuse, rows, said):
    write_small("")
    Path("i.csv").write_bytes(rows.encode("latin-1"))
    more = "--format jsonl csv" if rows.startswith("{") else ""
    refuse(SMALL + more, *said)
    assert not Path("out").exists()


def test_bad_items_files_and_flags(refuse):
    refuse(SMALL, "i.csv does not exist")
    write_small(ROWS)
    refuse("--interactions i.csv", "--items, --output are missing")
    refuse(SMALL + "--check out", "--check goes without")
    refuse(SMALL + "--split_time 3", "--split_time needs --split time")
    refuse(SMALL + "--split time --split_time soon", "'soon' is neither a number nor a date")
    refuse(SMALL + "--split time --split_time 99", "none of 3 users", "another --split_time")
    refuse(SMALL + "--encoding klingon", "klingon is unknown")
    refuse(SMALL + "--encoding undefined", "undefined is unknown")
    refuse(SMALL + "--encoding utf-16", "i.csv is not utf-16", "--encoding latin-1")
    refuse(SMALL + "--user_column who", "no column 'who' (--user_column)", "user, item, time")
    refuse(SMALL + "--user_column item", "'item' is named for the user and for the item")
    refuse(SMALL + "--text_columns colour", "m.csv: no column 'colour' (--text_columns)", "item, title")
    refuse(SMALL + "--min_user_interactions 9", "no interaction is left after --min_user_interactions 9")
    refuse(SMALL + "--format jsonl", "i.csv, line 1, line 2, line 3 and 6 more: not valid JSON")
    np.save("short.npy", np.ones((3, WIDTH), dtype=np.float32))
    refuse(SMALL + "--embeddings short.npy", "short.npy has 3 rows, expected 4", "m.csv")
    np.save("narrow.npy", np.ones((4, 8), dtype=np.float32))
    refuse(SMALL + "--embeddings narrow.npy", "8 wide, expected a multiple of 32")
    np.save("nan.npy", np.full((4, WIDTH), np.nan, dtype=np.float32))
    refuse(SMALL + "--embeddings nan.npy", "nan.npy, row 0")
    write("m.csv", "item,title\nNA,x\n,y\n")
    refuse(SMALL, "m.csv: no row has a value in item. Name other columns with --item_column")
    write("m.csv", "item,title\n")
    refuse(SMALL, "m.csv has no row")
    write("m.csv", "item\na\n")
    refuse(SMALL, "m.csv: no column with text")
    write("m.csv", "item,title\na,\nb,\n")
    refuse(SMALL, "m.csv: no item has any text in title", "--text_columns")
    write("m.item", "item_id:token\titem_id:float\ttitle:token_seq\na\t1\tx\n")
    refuse(SMALL.replace("m.csv", "m.item"), "m.item: two columns are called 'item_id'")
    duckdb.sql("SELECT range % 9 AS user, 'a' AS item FROM range(50000)").write_parquet("i.parquet")
    damaged = bytearray(Path("i.parquet").read_bytes())
    damaged[4 : len(damaged) // 2 : 7] = bytes(byte ^ 0x55 for byte in damaged[4 : len(damaged) // 2 : 7])
    Path("i.parquet").write_bytes(damaged)
    refuse(SMALL.replace("i.csv", "i.parquet"), "i.parquet cannot be read as parquet")
    write("m.jsonl", '{"item": "a", "title": "x"}\n')
    refuse(SMALL.replace("m.csv", "m.jsonl") + "--text_columns title brnd", "no line has text in 'brnd'", "item, title")
    write("i.csv", "user,item\nx,a\n")
    refuse(SMALL + "--split time", "which --split time needs", "--time_column")
    rows = "user,item\n" + "".join(f"{os.urandom(9).hex()},a\n" for _ in range(20_000))
    Path("i.csv.gz").write_bytes(gzip.compress(rows.encode())[:-9000])
    Path("zeros.csv.gz").write_bytes(gzip.compress(b"user,item\nx,a\n") + bytes(600))
    refuse(SMALL.replace("i.csv", "zeros.csv.gz"), "zeros.csv.gz cannot be read", "GZIP")
    for encoding in ("", " --encoding latin-1"):
        refuse(SMALL.replace("i.csv", "i.csv.gz") + encoding, "i.csv.gz, after line ", "Fetch it again")


def test_other_encodings_and_names_with_signs(call):
    for name, encoding in (("i[1].csv", "cp1252"), ("i*.csv.gz", "utf-8"), ("ü'.csv", "utf-16")):
        write(name, "user,item\n“x”,ä\n“x”,b\n", encoding)
        write("m.csv", "item,title\nä,€\nb,b\n", encoding)
        call(f"--interactions {shlex.quote(name)} --items m.csv --output out {EVERYTHING} --encoding {encoding}")
        assert made()["test"] == {"“x”": [0, 1]}
        assert made()["item_text_dict"][0] == {"title": "€"}
        assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_help_when_run_as_a_file():
    command = [sys.executable, "data_processing/import_dataset.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "python data_processing/import_dataset.py --check" in done.stdout
    assert "item_ids.jsonl" in done.stdout


# --check


def test_check_of_other_scripts_and_the_release(call, capsys, house):
    write_own_data(Path("in"))
    call("--input in --output out --test_share 0.25", make_dataset)
    call("--check out")
    assert "nothing wrong; 29 train users, 10 test users, 12 items" in capsys.readouterr().out
    call("--input in --output out --test_share 1", make_dataset)
    call("--check out")
    call(f"--check {house / 'data/test/steam'}")
    assert "nothing wrong; 24 train users, 24 test users, 400 items" in capsys.readouterr().out


def test_check_tells_everything_at_once(refuse, call, capsys):
    write_small(ROWS)
    call(SMALL)
    matrix = np.ones((4, 40), dtype=np.float32)
    matrix[1, 2], matrix[3] = np.nan, 0
    np.save("out/item_text_embeddings.npy", matrix)
    Path("out/train.pkl").write_bytes(b"\x80")
    lists = {"x": [0, 1, 2, 3], "y": [9], "z": [], "v": [0, -1], "w": [0, "1"], "u": 5, "t": [0, 1], "s": [0, 4, 5]}
    dump(Path("out/test.pkl"), lists)
    dump(Path("out/cold_test.pkl"), {"x": [0, 2], "q": [0, 1], "t": [0, 1, 0, 1, 0]})
    Path("out/cold_train.pkl").unlink()
    dump(Path("out/test_times.pkl"), {"x": [1, 3, 2, 4], "t": [1], "s": [1, float("nan"), 2], "r": [1]})
    dump(Path("out/item_text_dict.pkl"), {0: {}, 1: "text", 7: {}})
    Path("out/item_ids.jsonl").write_text('{"id": 1, "item": "a"}\n')
    Path("out/.item_text_embeddings.npy.partial").touch()
    Path(".out.17.partial").mkdir()
    capsys.readouterr()
    with pytest.raises(InputError, match="kind.s. of fault"):
        call("--check out")
    told = capsys.readouterr().out
    for words in (
        "embeddings are 40 wide, expected a multiple of 32",
        "1 embeddings with NaN or infinity: row 1",
        "wrong: out/item_text_embeddings.json: width is 32, the matrix has: 40",
        "remark: out/item_text_embeddings.npy: items without text, which are not recommended: 1 zero rows",
        "out/train.pkl is not a whole pickle file",
        "out/cold_train.pkl does not exist",
        "found another type: user 'u'",
        "no whole numbers: user 'w'",
        "lists of fewer than 2 item(s) (a history and a target): user 'y', user 'z'",
        "negative item ids: user 'v' has -1",
        "rows 0 to 3: user 'y' has 9, user 's' has 4, user 's' has 5",
        "lists of more than 4 items: user 't'",
        "users that are not in test.pkl: user 'q'",
        "no piece of the same user's list in test.pkl: user 'x', user 't'",
        "test users without times: user 'y', user 'z', user 'v'",
        "test_times.pkl: users that are not in test.pkl: user 'r'",
        "no finite numbers: user 's'",
        "not one time for each item: user 't' has 1 times and 2 items",
        "times that go back: user 'x'",
        "not among the rows of item_text_embeddings.npy: 7",
        "no dicts of fields: item 1 (str)",
        "not in the order of the ids: line 1",
        "1 items, item_text_embeddings.npy has: 4",
        ".out.17.partial: left by a run that was killed",
        ".item_text_embeddings.npy.partial: left by",
    ):
        assert words in told, (words, told)
    with pytest.raises(InputError, match="none is not a directory"):
        call("--check none")


def test_check_counts_what_it_does_not_name(call, capsys):
    write_small(ROWS)
    call(SMALL)
    dump(Path("out/test.pkl"), {user: [] for user in range(20)})
    with pytest.raises(InputError):
        call("--check out")
    assert "user 0, user 1, user 2 and 17 more" in capsys.readouterr().out
