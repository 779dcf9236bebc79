"""Data sets to RecBole's files and back, lists to TREC files, and our metrics beside those of trec_eval."""

import json
import pickle
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing import export_dataset, import_dataset
from data_processing.export_dataset import BREAKS
from tests.conftest import dump
from tests.test_data_processing import WIDTH, HashEncoder
from utils import trec
from utils.cli import run
from utils.compare import write_lists
from utils.metrics import list_ranks, score_ranks, user_metrics

FILES = ("train", "test", "cold_train", "cold_test", "test_times", "item_text_dict")
KS = [1, 3, 5]
MEASURES = [f"{measure}_{k}" for k in KS for measure in ("success", "ndcg_cut")] + ["recip_rank"]  # hit, NDCG, MRR


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run a script's main() in the test's directory, with a command line as it is typed; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data_processing.parts.encoding.load_encoder", lambda name, device: HashEncoder())

    def run_main(script, command: str) -> str:
        monkeypatch.setattr(sys, "argv", [script.__name__, *shlex.split(command)])
        script.main()
        return capsys.readouterr().out

    return run_main


@pytest.fixture
def refuse(call, capsys):
    """The command ends with exit code 2 and a message of one line that has the words."""

    def run_main(script, command: str, *said: str) -> None:
        with pytest.raises(SystemExit) as stopped:
            run(lambda: call(script, command))
        (message,) = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == 2 and all(words in message for words in said), message

    return run_main


def files_of(folder: str) -> dict[str, object]:
    """All that a data set directory holds, its embeddings included."""
    found = {name: pickle.loads(Path(folder, f"{name}.pkl").read_bytes()) for name in FILES}  # noqa: S301
    found["items"] = Path(folder, "item_ids.jsonl").read_text("utf-8")
    return found | {"embeddings": np.load(f"{folder}/item_text_embeddings.npy").tolist()}


def there_and_back(call, folder: str = "shop") -> tuple[str, str]:
    """Export `folder`, read it back into data/test/shop_back by the printed command; what both scripts printed."""
    told = call(export_dataset, f"--dataset {folder} --recbole dataset/shop")
    command = told.splitlines()[-1].partition("import_dataset.py ")[2]
    return told, call(import_dataset, f"{command} --device cpu")


# RecBole's files


def write_shop(texts: list[str], timed: bool = True) -> None:
    """Six users, seven items: nobody had item 6, item 5 has no text, item 4 is not in the file of items."""
    users = ("anna", "ben 2", "ü, 3", '"q"', "5", "zoë")
    rows = [
        (user, f"B {(u + turn * turn) % 6}", 1.6e9 + 7 * u + turn // 2 + 0.25)
        for u, user in enumerate(users)
        for turn in range(3 + u)
    ]
    lines = [{"user": user, "item": item} | ({"time": time} if timed else {}) for user, item, time in rows]
    items = [
        {"item": f"B {number}"}
        | ({"title": text} if text else {})
        | ({"brand": "Bic"} if number in (0, 2) else {})
        | ({"price": f"{number}.50"} if number in (1, 2) else {})
        for number, text in enumerate(texts)
        if number != 4
    ]
    for name, records in (("i.jsonl", lines), ("m.jsonl", items)):
        Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))


IMPORT = (
    "--interactions i.jsonl --items m.jsonl --output shop --min_user_interactions 0 --min_item_interactions 0 "
    "--text_columns title price brand --device cpu "
)
TEXTS = ["Café", '"quoted" 5"', '  "blanks', "colon: x", "", "", "日本"]


def test_a_data_set_comes_back_equal(call):
    """All of it, but for the metadata: lists, cold-start pieces, times, names, texts, embeddings."""
    write_shop(TEXTS)
    call(import_dataset, IMPORT)
    told, _ = there_and_back(call)
    assert files_of("data/test/shop_back") == files_of("shop")
    assert "6 users, 33 interactions, 7 items" in told and "blanks or question marks" not in told
    inter = Path("dataset/shop/shop.inter").read_text("utf-8").splitlines()
    assert inter[:2] == ["user_id:token\titem_id:token\ttimestamp:float", "anna\tB 0\t1600000000.25"]
    item = Path("dataset/shop/shop.item").read_text("utf-8").splitlines()
    assert item[0] == "item_id:token\ttitle:token_seq\tprice:token_seq\tbrand:token_seq"
    assert item[2] == 'B 1\t "quoted" 5"\t1.50\t'  # a blank in front


def test_the_order_of_fields_comes_back_as_their_text_depends_on_it(call):
    """The first item lacks the field in the middle."""
    write_shop(TEXTS)
    call(import_dataset, IMPORT)
    there_and_back(call)
    texts = [files_of(folder)["item_text_dict"] for folder in ("shop", "data/test/shop_back")]
    assert [list(fields) for fields in texts[0].values()] == [list(fields) for fields in texts[1].values()]
    assert list(texts[0][0]) == ["title", "brand"] and list(texts[0][2]) == ["title", "price", "brand"]


def test_without_times_places_stand_for_them(call):
    write_shop(TEXTS, timed=False)
    call(import_dataset, IMPORT)
    told, _ = there_and_back(call)
    assert "the times of 6 users are not known" in told
    lines = Path("dataset/shop/shop.inter").read_text("utf-8").splitlines()[1:4]
    assert [line.split("\t")[2] for line in lines] == ["0.0", "1.0", "2.0"]
    Path("shop/test_times.pkl").write_bytes(Path("data/test/shop_back/test_times.pkl").read_bytes())
    assert files_of("data/test/shop_back") == files_of("shop")


@pytest.mark.parametrize("flags", ["--split time --split_time 0.7", "--split users --test_share 0.5"])
def test_histories_of_other_splits_come_back(call, flags):
    """The files have every history once, of test.pkl and of train.pkl; the split itself is not in them."""
    write_shop(TEXTS)
    call(import_dataset, IMPORT + flags)
    before = files_of("shop")
    told, _ = there_and_back(call)
    after = files_of("data/test/shop_back")
    assert after["test"] == {user: items for user, items in (before["train"] | before["test"]).items() if items[1:]}
    assert {user: times for user, times in after["test_times"].items() if user in before["test_times"]} == (
        before["test_times"]
    )
    assert f"the times of {len(before['train'].keys() - before['test'].keys())} users are not known" in told
    assert (after["items"], after["item_text_dict"]) == (before["items"], before["item_text_dict"])


def test_one_name_with_two_histories_is_two_users(call):
    """As in the release, where each file numbers its users for itself."""
    write_release({0: [1, 2], 1: [0, 1, 2]}, {0: [2, 1, 0], 1: [0, 1]})
    told = call(export_dataset, "--dataset shop --recbole out")
    assert "1 names in both train.pkl and test.pkl have other histories" in told
    rows = [line.split("\t") for line in Path("out/shop.inter").read_text().splitlines()[1:]]
    assert [(user, item) for user, item, _ in rows] == [
        *(("0", "1"), ("0", "2"), ("1", "0"), ("1", "1"), ("1", "2")),
        *(("train_0", "2"), ("train_0", "1"), ("train_0", "0")),
    ]


def write_release(test: dict, train: dict | None = None, texts: dict | None = None, items: list | None = None) -> None:
    dump(Path("shop/test.pkl"), test)
    dump(Path("shop/item_text_dict.pkl"), texts or {item: {"title": f"item {item}"} for item in range(3)})
    np.save("shop/item_text_embeddings.npy", np.eye(3, WIDTH, dtype=np.float32))
    if train is not None:
        dump(Path("shop/train.pkl"), train)
    if items is not None:
        lines = (json.dumps({"id": number, "item": item}) + "\n" for number, item in enumerate(items))
        Path("shop/item_ids.jsonl").write_text("".join(lines))


def test_texts_that_a_line_cannot_hold_are_changed_and_told(call):
    fields = {"title": "tab\there\r\nand\nthere", "tags": ["a", None, 3], "a:b": {"c": "ü"}}
    write_release({"x": [0, 1, 2]}, texts={0: fields, 1: {"title": "half \ud83d"}})
    told, _ = there_and_back(call)
    assert "2 texts with tabs, line breaks or half characters have blanks or question marks there" in told
    assert "2 fields that were no text were written as text" in told
    assert "the text field 'a:b' becomes the column a_b" in told
    texts = files_of("data/test/shop_back")["item_text_dict"]
    expected = {"title": "tab here and there", "tags": "a  3", "a_b": '{"c": "ü"}'}
    assert texts == {0: expected, 1: {"title": "half ?"}}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"test": {"a\tb": [0, 1]}}, ("shop: the user 'a\\tb' has a tab", "Rename it")),
        ({"test": {"NA": [0, 1]}}, ("user 'NA'", "missing value")),
        ({"test": {1: [0, 1], "1": [1, 2]}}, ("two users are called '1'",)),
        ({"test": {"x": [0, 1]}, "items": ["a", "b\n", "c"]}, ("the item 'b\\n'", "line break")),
        ({"test": {"x": [0, 1]}, "items": ["a", "b", "a"]}, ("two items are called 'a'",)),
        ({"test": {"x": [0, 3]}}, ("user 'x': item id 3",)),
        ({"test": {"x": [0, 1]}, "texts": {0: {"item_id": "x"}}}, ("the text field 'item_id' would be the column",)),
        ({"test": {"x": [0, 1]}, "texts": {0: {"a:": "x", "a_": "y"}}}, ("the text field 'a:' would be",)),
    ],
)
def test_what_recbole_cannot_hold_is_refused(refuse, files, said):
    write_release(**files)
    refuse(export_dataset, "--dataset shop --recbole out", *said)
    assert not Path("out").exists()


def test_times_that_do_not_fit_and_a_directory_without_lists_are_refused(refuse):
    write_release({"x": [0, 1]})
    for times in ({"x": [1.0]}, {}, {"x": [1.0, float("nan")]}, {"x": "no"}):
        dump(Path("shop/test_times.pkl"), times)
        refuse(export_dataset, "--dataset shop --recbole out", "test_times.pkl, user 'x'", "each of the 2 items")
    Path("shop/test.pkl").unlink()
    refuse(export_dataset, "--dataset shop --recbole out", "shop has neither train.pkl nor test.pkl")


odd = st.text(st.sampled_from("\"' ,;:|\\\t\n\r\0\x0b\u2028\ufeff\x85aé日-{}[]"), max_size=8)


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(odd, min_size=3, max_size=3))
def test_odd_texts_come_back(tmp_path_factory, texts):
    """But for tabs, line breaks and zero bytes, each of which is a blank; RecBole's reader finds the same rows."""
    texts = {item: {"title": f"{text}x", "note": f'"{text}x'} for item, text in enumerate(texts)}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("odd"))
        write_release({"x": [0, 1, 2]}, texts=texts)
        for script, command in ((export_dataset, "--dataset shop --recbole out"), (import_dataset, BACK)):
            patched.setattr(sys, "argv", [script.__name__, *command.split()])
            script.main()
        found = files_of("back")["item_text_dict"]
        read = pandas.read_csv("out/shop.item", delimiter="\t", dtype=str, encoding="utf-8", engine="python")
    expected = {item: {name: BREAKS.sub(" ", text) for name, text in fields.items()} for item, fields in texts.items()}
    assert found == expected
    assert read.columns.tolist() == ["item_id:token", "title:token_seq", "note:token_seq"]
    assert read["title:token_seq"].fillna("").str.split(" ").map(words).tolist() == [
        words(fields["title"].split(" ")) for fields in expected.values()
    ]


def words(parts: list[str]) -> list[str]:
    """As RecBole splits a token_seq."""
    return list(filter(None, parts))


BACK = (
    "--interactions out/shop.inter --items out/shop.item --output back --text_columns title note --device cpu "
    "--min_user_interactions 0 --min_item_interactions 0 --embeddings shop/item_text_embeddings.npy"
)


# TREC's files, and the metrics of trec_eval


def judged(qrels: dict, runs: dict) -> dict[str, list[float]]:
    """What trec_eval says of each user, in the order of MEASURES."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    found = pytrec_eval.RelevanceEvaluator(qrels, {"success.1,3,5", "ndcg_cut.1,3,5", "recip_rank"}).evaluate(runs)
    return {user: [values[name] for name in MEASURES] for user, values in found.items()}


def test_metrics_with_ties_are_the_mean_of_those_of_trec_eval_over_all_orders_of_the_tie():
    """1,000 random cases, most with ties. trec_eval breaks a tie by the names of the items: here each order in turn.

    Where the target stands among T equal scores decides, and T turns of the tie put it at each of its T places once, so
    that their mean is that over all T! orders.
    """
    rng = np.random.default_rng(0)
    ours, qrels, runs, turns = [], {}, {}, []
    for case in range(1000):
        scores = rng.integers(0, rng.integers(2, 9), rng.integers(2, 15)).astype(float)
        scores[rng.random(len(scores)) < 0.1] = -np.inf  # not recommended
        target = int(rng.integers(len(scores)))
        ranks = score_ranks(torch.tensor(scores)[None], torch.tensor([target]))
        ours.append(user_metrics(ranks, KS)[0].tolist())
        others = [item for item in np.argsort(-scores, kind="stable") if scores[item] != scores[target]]
        tie = np.flatnonzero(scores == scores[target])
        turns.append(len(tie))
        for turn in range(len(tie)):
            order = [*(item for item in others if scores[item] > scores[target]), *np.roll(tie, turn)]
            order += [item for item in others if scores[item] < scores[target]]
            listed = [item for item in order if scores[item] > -np.inf][: KS[-1]]  # MRR is over the longest list
            names = {item: f"{99 - place:02d}" for place, item in enumerate(listed)}  # the highest comes first
            qrels[f"{case} {turn}"] = {names.get(target, "not in the list"): 1}
            runs[f"{case} {turn}"] = {names[item]: float(scores[item]) for item in listed} or {"none": 0.0}
    theirs = judged(qrels, runs)
    means = [np.mean([theirs[f"{case} {turn}"] for turn in range(tied)], 0) for case, tied in enumerate(turns)]
    np.testing.assert_allclose(ours, means, rtol=0, atol=1e-6)
    assert len(ours) == 1000 and sum(tied > 1 for tied in turns) > 600
    plain = np.array([theirs[f"{case} 0"] for case in range(1000)])
    assert np.abs(plain - ours).max() > 0.1  # one order is not the mean


def test_lists_in_trec_files_have_the_metrics_of_their_places(call):
    """1,000 random lists with ties through write_lists, utils.trec and trec_eval's own readers."""
    rng = np.random.default_rng(1)
    users = np.array([f"user {number}%" for number in range(1000)], dtype=object)
    lists = [rng.permutation(30)[: rng.integers(1, 6)].tolist() for _ in users]
    scores = [np.sort(rng.integers(0, 4, len(items)) / 4 - 1)[::-1].tolist() for items in lists]
    targets = np.array([rng.choice([*items, 31]) for items in lists])
    padded = torch.tensor([items + [-1] * (5 - len(items)) for items in lists])
    ranks = list_ranks(padded, torch.from_numpy(targets))
    write_lists("lists.jsonl", users, zip(lists, scores, strict=True), (targets, ranks))
    told = call(trec, "lists.jsonl --output trec")
    ties = sum(
        target in items and values.count(values[items.index(target)]) > 1
        for target, items, values in zip(targets, lists, scores, strict=True)
    )
    assert ties > 100 and f"the targets of {ties} users tie" in told and "1000 targets" in told

    pytrec_eval = pytest.importorskip("pytrec_eval")
    with Path("trec/lists.run.txt").open() as file:
        found = pytrec_eval.parse_run(file)
    with Path("trec/lists.qrels.txt").open() as file:
        qrels = pytrec_eval.parse_qrel(file)
    for user, items in zip(users, lists, strict=True):
        placed = sorted(found[trec.no_white_space(user)].items(), key=lambda pair: -pair[1])
        assert [int(item) for item, _ in placed] == items
    theirs = judged(qrels, found)
    expected = user_metrics(ranks, KS).numpy()
    np.testing.assert_allclose([theirs[trec.no_white_space(user)] for user in users], expected, rtol=0, atol=1e-6)


def write_lines(lists: list[dict]) -> None:
    Path("lists.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lists))


def test_lines_of_both_files(call):
    write_lines(
        [
            {"user": "anna b", "items": [4, 2, 7], "scores": [-1.5, -1.5, -3.0], "target": 2, "rank": 1.5},
            {"user": 5, "items": [1, 0, 1], "scores": [0.5, None, 0.1], "target": 9, "rank": None},
            {"user": "ü\u3000%", "items": [], "scores": [], "target": 3, "rank": None},
        ]
    )
    told = call(trec, "lists.jsonl --output trec")
    assert Path("trec/lists.run.txt").read_text("utf-8").splitlines() == [
        "anna%20b Q0 4 1 -1.5 lists",
        "anna%20b Q0 2 2 -1.5000001192092896 lists",
        "anna%20b Q0 7 3 -3.0 lists",
        "5 Q0 1 1 -1.0 lists",  # a score that is null: the places count
        "5 Q0 0 2 -2.0 lists",
    ]
    qrels = ["anna%20b 0 2 1", "5 0 9 1", "ü%E3%80%80%25 0 3 1"]
    assert Path("trec/lists.qrels.txt").read_text("utf-8").splitlines() == qrels
    assert "3 users" in told and "1 users have an empty list" in told and "the targets of 1 users tie" in told


def test_lists_without_targets_have_no_qrels(call):
    """Also none of an earlier file of that name; scores that contradict the order give way to it."""
    write_lines([{"user": "x", "items": [1, 2], "target": 1}])
    call(trec, "lists.jsonl --output trec")
    write_lines([{"user": "x", "items": [1, 2], "scores": [0.25, 0.75]}])
    told = call(trec, "lists.jsonl --output trec")
    assert [path.name for path in Path("trec").iterdir()] == ["lists.run.txt"] and "qrels" not in told
    (first, second) = Path("trec/lists.run.txt").read_text().splitlines()
    assert first == "x Q0 1 1 0.25 lists" and float(second.split()[4]) < 0.25


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ([], ("lists.jsonl has no list",)),
        ([{"user": "x"}], ("lists.jsonl, line 1", "expected user and items", "predict.py --output")),
        ([{"user": "", "items": [1]}], ("line 1", "expected user and items")),
        ([{"user": "x", "items": ["B01"]}], ("line 1", "expected user and items")),
        ([{"user": "x", "items": [1], "scores": []}], ("line 1: found scores []", "each of 1 items")),
        ([{"user": "x", "items": [1], "target": "B01"}], ("line 1: found target 'B01'",)),
        ([{"user": 1, "items": [1]}, {"user": "1", "items": [1]}], ("line 2: user '1' is there twice",)),
    ],
)
def test_lists_of_another_form_are_refused(refuse, lists, said):
    write_lines(lists)
    refuse(trec, "lists.jsonl --output trec", *said)
    assert not Path("trec").exists()


@given(st.lists(st.floats(-1e37, 1e37) | st.integers(-3, 3), min_size=1, max_size=20))
def test_scores_fall_strictly_in_single_precision_and_stay_where_they_do(scores):
    falling = trec.descending(scores, len(scores))
    assert all(np.float32(first) > np.float32(second) for first, second in zip(falling, falling[1:], strict=False))
    distinct = sorted({float(np.float32(score)) for score in scores}, reverse=True)
    assert trec.descending(distinct, len(distinct)) == distinct
