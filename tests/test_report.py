"""The page of predict.py --report: figures as printed, text that cannot become markup, nothing that is fetched."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from model import RecGPT, RecGPTConfig
from tests.conftest import dump
from tests.test_compare import ITEMS, TEXTS, USERS, WIDTH, Shop, rows_of
from utils.checkpoint import save_state
from utils.compare import intervals
from utils.page import JOINERS, shortened, text
from utils.report import FEWEST

HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style><img onerror=x>",
    "\" onload='x' & &lt;b&gt;",
    "x" * 10_000,
    "a\x00b\x1b[31m\r\nc\ud800\u2028",
    "\u202egnp.\u202c \u05e9\u05dc\u05d5\u05dd",
    "{body} %s {0}",
    "   ",
    "<!--",
]

BLOCKS = ("h1", "h2", "h3", "p", "li", "tr", "section")


class Read(HTMLParser):
    """What a page holds: its tags, the cells of its tables, and its text. Tags must be closed in the right order."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.rows, self.text = [], set(), set(), [], ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += "\n" if tag in BLOCKS else ""

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "style" not in self.open:
            self.text += data


@pytest.fixture
def shop(tmp_path, monkeypatch, capsys) -> Shop:
    return Shop(tmp_path, monkeypatch, capsys)


def page_of(shop: Shop, flags: str = "") -> tuple[list[dict], Read]:
    """The results of predict.py, and the page, which needs nothing but itself."""
    results = shop.predict(f"--report {shop.folder}/new/report {flags}")
    assert f"wrote {shop.folder}/new/report/report.html" in shop.printed
    page = (shop.folder / "new/report/report.html").read_text(encoding="utf-8")
    assert len(page) < 100_000 and "http" not in page and "url(" not in page and "@import" not in page
    read = Read(page)
    assert not read.tags & {"script", "img", "link", "iframe", "object", "a", "form"}
    assert not {name for name in read.attributes if name.startswith("on")} | read.attributes & {"src", "href", "style"}
    return results, read


def charted(read: Read) -> list[list[str]]:
    """The lines of charts: a label, an empty drawing, and the numbers."""
    return [row for row in read.rows if len(row) == 3 and row[1] == ""]


@pytest.mark.parametrize("flags", ["--blend --topk 1 5 10", "--exclude_history", "--protocol released", "--cold"])
def test_the_figures_are_those_that_are_printed(shop, flags):
    results, read = page_of(shop, flags)
    tables = [row for row in read.rows if len(row) > 5]
    printed = [re.split(r"  +", line.strip()) for line in shop.printed.splitlines()]
    for found in results:
        said = [f"{found[name]:.4f}" for name in found if re.match("hit|ndcg|mrr", name)]
        (line,) = [row for row in tables if row[0] == found["method"] and sorted(row[1:-1]) == sorted(said)][:1]
        assert [cell for cell in line if cell] in [[cell.removesuffix("*") for cell in row] for row in printed]
    for line in shop.printed.splitlines():
        if "NDCG@" in line:  # verdicts
            assert line in read.text
    main, bars = "ndcg@10" if "10" in flags else "ndcg@5", charted(read)
    for found in rows_of(results, results[0]["group"]).values():
        numbers = next(row[2] for row in bars if row[0] == found["method"])
        value, interval = numbers.split(" ", 1)
        assert value == f"{found[main]:.4f}"
        if found["needs"]:
            assert interval == "{difference:+.4f} [{low:+.4f}, {high:+.4f}]".format_map(found)
    for line in re.findall(r"(.*) recommends (\d+) of \d+ items .* in ([\d.]+%) of", shop.printed):
        assert [*line] in [row[:3] for row in read.rows]


@pytest.mark.parametrize("flags", ["--blend --exclude_history", ""])
def test_what_to_do_is_said_in_words(shop, flags):
    """The ranking that needs least, of those that are level with the best."""
    results, read = page_of(shop, f"{flags} --per_user {shop.folder}/users.npz")
    rows, gains = rows_of(results, results[0]["group"]), np.load(shop.folder / "users.npz")
    rankings = {"blend (no log)": "text", "blend (its log)": "log", "RecGPT": "model", "blend with RecGPT": "blend"}
    there = [name for name in rankings if name in rows]
    best = max(there, key=lambda name: rows[name]["ndcg@5"])
    level = [
        name
        for name in there
        if name == best or intervals((gains[f"ndcg: {best}"] - gains[f"ndcg: {name}"])[None])[0]["low"] <= 0
    ]
    users, hits = rows["RecGPT"]["users"], rows["popularity"]["hit@5"]
    assert f"Of {users} users" in read.text and f"{round(users * hits)} by popularity" in read.text
    assert f"Best of what a bundle can rank by is {best}" in read.text
    assert f"--rank_by {rankings[level[0]]}" in read.text
    assert ("Measure that with --exclude_history" in read.text) == (not flags)


def test_groups_of_users(shop):
    """By the length of the history and by how often the log has the target: the means of their users, in all NDCG."""
    results, read = page_of(shop, f"--per_user {shop.folder}/users.npz")
    gains = np.load(shop.folder / "users.npz")["ndcg: RecGPT"]
    log = np.concatenate([items[:-1] for items in shop.lists.values()])
    counts = np.array([np.sum(log == items[-1]) for items in shop.lists.values()])
    lengths = np.array([len(items) - 1 for items in shop.lists.values()])
    sections = [row[0] for row in read.rows if len(row) == 1]
    for values, low, high, label in (
        (lengths, 3, 4, "3 to 4"),
        (lengths, 10, 19, "10 to 19"),
        (counts, 5, 19, "5 to 19"),
    ):
        members = (values >= low) & (values <= high)
        few = f"; fewer than {FEWEST} users are too few for an interval" if members.sum() < FEWEST else ""
        assert f"{label}: {members.sum()} user{'s' if members.sum() != 1 else ''}{few}" in sections
        at = next(number for number, row in enumerate(read.rows) if len(row) == 1 and row[0].startswith(f"{label}: "))
        number, *interval = read.rows[at + 1][2].split()
        assert number == f"{gains[members].mean():.4f}" and bool(interval) == (members.sum() >= FEWEST)
    assert f"target is new: {sum(items[-1] not in items[:-1] for items in shop.lists.values())} users" in sections
    assert len(results)


def test_coverage_and_codes(shop):
    rows = np.load(shop.folder / "item_text_embeddings.npy")
    rows[[7, 8]] = rows[6]  # the same text, and so the same codes
    np.save(shop.folder / "item_text_embeddings.npy", rows)
    dump(
        shop.folder / "train.pkl",
        {user: [item for item in items[:-1] if item > 19] for user, items in shop.lists.items()},
    )
    _, read = page_of(shop, f"--output {shop.folder}/lists.jsonl")
    listed = [json.loads(line) for line in (shop.folder / "lists.jsonl").read_text().splitlines()]
    pairs = [(item, shop.lists[one["user"]][:-1]) for one in listed for item in one["items"]]
    new = np.mean([item not in history for item, history in pairs])
    known = {item for items in shop.lists.values() for item in items[:-1] if item > 19}
    unseen = np.mean([item not in known for item, _ in pairs])
    assert 0 < unseen < 1
    assert [f"{new:.1%}", f"{unseen:.1%}"] in [row[3:] for row in read.rows if row[0] == "RecGPT"]
    shared = int(re.search(r"(\d+) of 38 items with text share all their codes", read.text)[1])
    assert shared >= 3 and [row for row in read.rows if row[0] == "code 4"]


def test_the_warning_of_the_screen(shop, monkeypatch):
    monkeypatch.setattr("utils.compare.SAME", 0.0)
    monkeypatch.setattr("utils.compare.FEW", 1)
    _, read = page_of(shop)
    (warning,) = [line for line in shop.printed.splitlines() if "nearly everyone" in line]
    assert warning in read.text


def test_titles_are_text_whatever_they_hold(shop):
    texts = {item: {"title": HOSTILE[item % len(HOSTILE)]} for item in range(ITEMS)}
    dump(shop.folder / "item_text_dict.pkl", texts)
    names = [{"id": item, "item": f"<b>{item}</b>"} for item in range(ITEMS)]
    (shop.folder / "item_ids.jsonl").write_text("".join(json.dumps(one) + "\n" for one in names))
    dump(shop.folder / "test.pkl", {f"<i>{user}": items for user, items in shop.lists.items()})
    lists = shop.save_lists({f"<i>{user}": items for user, items in shop.lists.items()})
    _, read = page_of(shop, f"--topk 20 --compare <u>mine={lists}")
    assert not read.tags & {"i", "u"} and "<u>mine" in [row[0] for row in charted(read)]
    assert "<script>alert(1)</script> <b>" in read.text and "User <i>user 0" in read.text
    assert "x" * 79 + "… " in read.text and "x" * 80 not in read.text
    assert not re.search("[\x00-\x09\x0b-\x1f\u2028\u202a-\u202e\ud800]", read.text)


def test_text_of_any_kind():
    for value in HOSTILE:
        said = str(text(value)) + str(text(shortened(value)))
        assert not set("<>\"'\x00\u202e\ud800") & set(said)
        assert len(shortened(value)) <= 80 and said.encode()
    assert text(text("a < b")) == "a &lt; b", "what is HTML already is not escaped again"
    assert shortened(f"a{JOINERS}b") == f"a{JOINERS}b" and shortened(12) == "12"


def test_examples_are_ten_evenly_spaced_users(shop):
    _, read = page_of(shop, f"--output {shop.folder}/lists.jsonl --topk 7")
    listed = [json.loads(line) for line in (shop.folder / "lists.jsonl").read_text().splitlines()]
    chosen = [listed[round(place)] for place in np.linspace(0, USERS - 1, 10)]
    parts = read.text.split("\nUser ")[1:]
    assert [part.splitlines()[0] for part in parts] == [one["user"] for one in chosen]
    for part, one in zip(parts, chosen, strict=True):
        history, found = part.split("The next item was ")
        assert re.findall(r"item (\d+)\n", history) == [str(item) for item in shop.lists[one["user"]][:-1][-5:]]
        rank = "not among the first 7" if one["rank"] is None else f"rank {one['rank']:g}"
        assert found.startswith(f"item {one['target']}: {rank}.")
        items = re.findall(r"item (\d+)(?: \(the next item\))?\n", found.split("Recommended:")[1])
        assert items == [str(item) for item in one["items"][:5]]


def test_without_a_log_titles_or_enough_users(shop):
    (shop.folder / "train.pkl").unlink()
    _, read = page_of(shop, "--blend")
    assert "There is no log" in read.text and "What blend (no log) recommends" in read.text
    assert [row[0] for row in charted(read)][:4] == ["RecGPT", *TEXTS]
    assert ["log", "none"] in read.rows and "no log" in next(row for row in read.rows if len(row) == 5)[4:] + ["no log"]
    dump(shop.folder / "test.pkl", {("a", 1): [3, 5]})
    _, read = page_of(shop, "--topk 1")
    assert "User ('a', 1)" in read.text and "1: 1 user; fewer than 30" in read.text and "nan" not in read.text
    dump(shop.folder / "test.pkl", {"anna": [3, 5, 3]})
    _, read = page_of(shop, "--exclude_history")
    assert "1 are left out" in read.text and "nan" not in read.text and "to 0 of 0 users" in read.text


def test_a_model_that_predicts_items(shop):
    model = RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=WIDTH, predicts="items"))
    torch.manual_seed(0)
    save_state(shop.folder / "model.pt", model.state_dict(), {"config": {"heads": 1, "predicts": "items"}})
    _, read = page_of(shop, "--blend --exclude_history")
    assert "which predicts items" in read.text and "tells these apart by their texts" in read.text
    assert "What blend with RecGPT recommends" in read.text


def test_a_place_that_cannot_be_written_is_refused_first(shop, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken/report.html").mkdir(parents=True)
    for place, said in (("file", "file cannot be made"), ("file/in", "in cannot be made"), ("taken", "is a directory")):
        shop.refuse(f"--report {tmp_path}/{place} --ckpt_path nowhere.pt", said)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "item_text_dict.pkl").write_text("damaged")
    shop.refuse(f"--report {tmp_path}/new", "item_text_dict.pkl")
    assert not list((tmp_path / "new").iterdir())
