"""predict.py beside other recommenders: its rows, intervals, verdicts, lists from files, histories excluded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

import predict
from ae_trainer import AutoEncoder
from model import RecGPT, RecGPTConfig
from tests.conftest import ROOT, dump
from utils import compare
from utils.cli import run
from utils.files import fingerprint
from utils.metrics import Ranks, user_metrics

ITEMS, USERS, WIDTH = 40, 60, 32
TEXTS, LOG = ["repeat recent", "nearest text", "whitened text"], ["popularity", "transitions", "item cosine", "EASE"]


class Shop:
    """A data set of invented histories with a stand-in model, on which predict.py runs in this process."""

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        torch.manual_seed(0)
        torch.save(AutoEncoder(WIDTH).state_dict(), folder / "vae.pt")
        torch.save(RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=WIDTH)).state_dict(), folder / "model.pt")
        rng = np.random.default_rng(1)
        rows = rng.standard_normal((ITEMS, WIDTH)).astype(np.float32)
        rows[[4, 9]] = 0  # without text
        np.save(folder / "item_text_embeddings.npy", rows)
        starts, lengths = rng.integers(0, ITEMS, USERS), rng.integers(2, 12, USERS)
        # Everybody goes through the catalog in steps of three, which transitions know, and a few turn back.
        self.lists = {
            f"user {user}": ((start + 3 * np.arange(length)) % ITEMS).tolist()
            for user, (start, length) in enumerate(zip(starts, lengths, strict=True))
        }
        for user in list(self.lists)[:15]:
            self.lists[user][-1] = self.lists[user][0]
        dump(folder / "test.pkl", self.lists)
        dump(folder / "cold_test.pkl", {user: items[-3:] for user, items in self.lists.items()})
        dump(folder / "train.pkl", {user: items[:-1] for user, items in self.lists.items()})

    def predict(self, flags: str = "") -> list[dict]:
        """The results of predict.py; `self.printed` is what it printed."""
        (self.folder / "results.jsonl").unlink(missing_ok=True)
        self.type(f"--results {self.folder}/results.jsonl {flags}")
        predict.main()
        self.printed = self.capsys.readouterr().out
        return [json.loads(line) for line in (self.folder / "results.jsonl").read_text().splitlines()]

    def refuse(self, flags: str, *said: str) -> None:
        self.type(flags)
        with pytest.raises(SystemExit) as stopped:
            run(predict.main)
        message = self.capsys.readouterr().err
        assert stopped.value.code == 2 and "Traceback" not in message
        for words in said:
            assert words in message, message

    def type(self, flags: str) -> None:
        where = f"--dataset {self.folder} --ckpt_path {self.folder}/model.pt --vae_ckpt {self.folder}/vae.pt"
        self.monkeypatch.setattr(sys, "argv", f"predict.py {where} --device cpu {flags}".split())

    def save_lists(self, lists: dict) -> str:
        lines = (json.dumps({"user": user, "items": items}) for user, items in lists.items())
        (self.folder / "other.jsonl").write_text("\n".join(lines))
        return f"{self.folder}/other.jsonl"


@pytest.fixture
def shop(tmp_path, monkeypatch, capsys) -> Shop:
    return Shop(tmp_path, monkeypatch, capsys)


def rows_of(results: list[dict], group: str = "all users") -> dict[str, dict]:
    return {found["method"]: found for found in results if found["group"] == group}


def test_rows_come_in_groups_of_what_they_need(shop):
    results = shop.predict()
    assert list(rows_of(results)) == ["RecGPT", *TEXTS, *LOG]
    needs = {name: found["needs"] for name, found in rows_of(results).items()}
    assert needs == {"RecGPT": None} | dict.fromkeys(TEXTS, compare.NOTHING) | dict.fromkeys(LOG, compare.LOG)
    table = shop.printed.split("all users: 60\n")[1].split("\n\n")[0].splitlines()
    expected = ["RecGPT", compare.NOTHING, *TEXTS, compare.LOG, *LOG]
    assert [line[:21].strip() for line in table[2:-1]] == [line[:21] for line in expected]
    assert table[0].endswith("ndcg@5 vs RecGPT")
    best = max(rows_of(results).values(), key=lambda row: row["ndcg@5"])
    assert best["method"] in LOG and best["low"] > 0 and f"{best['ndcg@5']:.4f}*" in shop.printed
    assert rows_of(results)["transitions"]["ndcg@5"] > 0.6  # they know the steps
    assert table[-1] == (
        f"RecGPT loses to {best['method']} (its log) by {best['difference']:.4f} NDCG@5, interval "
        f"[{best['low']:.4f}, {best['high']:.4f}]; without a log the best is "
        + max(TEXTS, key=lambda name: rows_of(results)[name]["ndcg@5"])
    )
    assert shop.printed.strip().splitlines()[-1].startswith("hit@1 = ")


def test_without_a_log_with_an_empty_one_and_cold(shop):
    dump(shop.folder / "train.pkl", {"user 0": [], "user 1": []})
    empty = rows_of(shop.predict())
    assert empty["transitions"]["hit@5"] == empty["popularity"]["hit@5"] == pytest.approx(5 / ITEMS)  # all tie
    (shop.folder / "train.pkl").unlink()
    assert list(rows_of(shop.predict())) == list(rows_of(shop.predict("--cold"))) == ["RecGPT", *TEXTS]
    assert "without a log" not in shop.printed


def test_bold_in_a_terminal(shop, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shop.predict()
    assert "*" not in shop.printed and "\033[1m0." in shop.printed


@pytest.mark.parametrize("flags", ["", "--exclude_history"])
def test_lists_of_its_own_are_ranked_as_the_model_is(shop, flags):
    own = rows_of(shop.predict(f"--output {shop.folder}/own.jsonl {flags}"), "target is new")["RecGPT"]
    found = rows_of(shop.predict(f"--compare copy={shop.folder}/own.jsonl {flags}"), "target is new")["copy"]
    assert found["needs"] == compare.TRAINING and (found["low"], found["difference"], found["high"]) == (0, 0, 0)
    assert all(found[name] == own[name] for name in ("hit@1", "hit@5", "ndcg@5", "mrr"))
    assert "\ntraining\n  copy" in shop.printed


@pytest.mark.parametrize("flags", ["", "--exclude_history"])
def test_the_gains_of_each_user_have_the_means_of_the_table(shop, flags):
    results = shop.predict(f"--topk 3 10 --per_user {shop.folder}/users.npz {flags}")
    with np.load(shop.folder / "users.npz") as saved:
        names = {f"{of}: {found['method']}" for found in results for of in ("ndcg", "above", "tied")}
        assert set(saved.files) == names | {f"group: {found['group']}" for found in results} | {"users"}
        assert saved["users"].tolist() == list(shop.lists)
        for found in results:
            gains, members = saved[f"ndcg: {found['method']}"], saved[f"group: {found['group']}"]
            assert gains.shape == members.shape == (USERS,) and members.sum() == found["users"]
            assert gains[members].mean() == pytest.approx(found["ndcg@10"], abs=1e-6), found["method"]
            ranks = Ranks(*(torch.from_numpy(saved[f"{side}: {found['method']}"][members]) for side in Ranks._fields))
            assert user_metrics(ranks, [3]).mean(0)[0] == pytest.approx(found["hit@3"], abs=1e-9)
            assert found["per_user"] == f"{shop.folder}/users.npz"
            assert found["fingerprints"]["per_user"] == fingerprint(shop.folder / "users.npz")
            if found["needs"]:
                assert (gains - saved["ndcg: RecGPT"])[members].mean() == pytest.approx(found["difference"], abs=1e-6)
        new = [items[-1] not in items[:-1] for items in shop.lists.values()]
        assert saved["group: target is new"].tolist() == new


def test_lists_that_do_not_fit(shop):
    good = {user: [1, 2] for user in shop.lists}
    for lists, said in (
        ({user: items for user, items in good.items() if user != "user 7"}, "user 'user 7' is missing; 1 user(s)"),
        (good | {"user 3": [1, ITEMS]}, f"line 4: item {ITEMS} is none of the catalog"),
        (good | {"user 3": [1, 0.5]}, "line 4: found"),
        (good | {"user 3": None}, "line 4: found"),
    ):
        shop.refuse(f"--compare other={shop.save_lists(lists)}", "other.jsonl", said)
    path = shop.save_lists(good)
    with Path(path).open("a") as file:
        file.write('\n{"user": "user 3", "items": []}')
    shop.refuse(f"--compare other={path}", "line 61: user 'user 3' is there twice")
    for name in ("RecGPT", "EASE"):
        shop.refuse(f"--compare {name}={shop.save_lists(good)}", f"there is a row {name} already")
    shop.refuse(f"--compare {path}", "is not NAME=FILE")
    shop.refuse("--compare other=nowhere.jsonl", "nowhere.jsonl")


def test_excluded_histories(shop):
    """Lists have no item of the history, and users whose target is one have no result."""
    repeated = {user for user, items in shop.lists.items() if items[-1] in items[:-1]}
    results = shop.predict(f"--exclude_history --output {shop.folder}/lists.jsonl --topk 5")
    lines = (shop.folder / "lists.jsonl").read_text().splitlines()
    lists = {one["user"]: one["items"] for one in map(json.loads, lines)}
    assert all(len(items) == 5 and not set(items) & set(shop.lists[user][:-1]) for user, items in lists.items())
    assert {found["group"] for found in results} == {"target is new"}
    new = rows_of(results, "target is new")
    assert new["RecGPT"]["users"] == USERS - len(repeated) > 0
    assert f"{len(repeated)} of {USERS} users are left out: their target is in their history" in shop.printed
    hits = [shop.lists[user][-1] in items for user, items in lists.items() if user not in repeated]
    assert new["RecGPT"]["hit@5"] == pytest.approx(np.mean(hits))
    assert new["repeat recent"]["hit@5"] == 0 and all(found["exclude_history"] for found in results)
    before = rows_of(shop.predict("--topk 5"), "target is new")
    assert all(new[name]["ndcg@5"] >= before[name]["ndcg@5"] for name in new)  # fewer candidates, no target among them


def test_lists_say_what_the_target_was(shop):
    """Its rank is its place in the list, or the mean of the places of equal scores, and null where it is not in it."""
    results = shop.predict(f"--output {shop.folder}/lists.jsonl --topk 5")
    lists = [json.loads(line) for line in (shop.folder / "lists.jsonl").read_text().splitlines()]
    assert [one["target"] for one in lists] == [items[-1] for items in shop.lists.values()]
    for one in lists:
        if one["target"] in one["items"]:
            assert one["scores"].count(one["scores"][one["items"].index(one["target"])]) == 1
            assert one["rank"] == one["items"].index(one["target"]) + 1
        else:
            assert one["rank"] is None
    gains = [1 / np.log2(one["rank"] + 1) if one["rank"] else 0 for one in lists]
    assert results[0]["ndcg@5"] == pytest.approx(np.mean(gains)) and any(gains)


@pytest.mark.parametrize("flags", ["--blend", "--blend --exclude_history"])
def test_lists_of_the_blend_have_its_ranks(shop, flags):
    results = rows_of(
        shop.predict(f"--output {shop.folder}/lists.jsonl --topk 5 {flags}"),
        "target is new" if "exclude" in flags else "all users",
    )
    lists = [json.loads(line) for line in (shop.folder / "lists.jsonl").read_text().splitlines()]
    repeated = [items[-1] in items[:-1] for items in shop.lists.values()]
    counted = [one for one, again in zip(lists, repeated, strict=True) if not (again and "exclude" in flags)]
    gains = [1 / np.log2(one["rank"] + 1) if one["rank"] and one["rank"] <= 5 else 0 for one in counted]
    assert results["blend with RecGPT"]["ndcg@5"] == pytest.approx(np.mean(gains))
    if "exclude" in flags:
        assert all(one["rank"] is None for one, again in zip(lists, repeated, strict=True) if again)


def test_lists_with_titles(shop):
    texts = {item: {"title": f"Pen {item}", "brand": "Bic"} for item in range(ITEMS) if item not in (4, 9)}
    dump(shop.folder / "item_text_dict.pkl", texts | {7: {"brand": "B" * 200}})
    shop.predict(f"--output {shop.folder}/lists.jsonl --with_titles")
    called = [f"Pen {item}" for item in range(ITEMS)]
    called[4] = called[9] = ""
    called[7] = "B" * 80
    for one in map(json.loads, (shop.folder / "lists.jsonl").read_text().splitlines()):
        assert one["titles"] == [called[item] for item in one["items"]] and one["ids"] == one["items"]
        assert one["target_title"] == called[one["target"]] and one["target_id"] == one["target"]
    names = [json.dumps({"id": item, "item": f"B{item:02d}"}) for item in range(ITEMS)]
    (shop.folder / "item_ids.jsonl").write_text("\n".join(names))
    shop.predict(f"--output {shop.folder}/lists.jsonl --with_titles")
    for one in map(json.loads, (shop.folder / "lists.jsonl").read_text().splitlines()):
        assert one["ids"] == [f"B{item:02d}" for item in one["items"]] and one["target_id"] == f"B{one['target']:02d}"
    shop.predict(f"--compare other={shop.folder}/lists.jsonl")  # more fields do no harm
    (shop.folder / "item_ids.jsonl").write_text("\n".join(names[1:]))
    shop.refuse(f"--output {shop.folder}/lists.jsonl --with_titles", f"does not name the items 0 to {ITEMS - 1}")
    dump(shop.folder / "item_text_dict.pkl", {0: ["Pen"]})
    (shop.folder / "item_ids.jsonl").unlink()
    shop.refuse(f"--output {shop.folder}/lists.jsonl --with_titles", "item_text_dict.pkl: found ['Pen']")
    (shop.folder / "item_text_dict.pkl").unlink()
    shop.refuse(f"--output {shop.folder}/lists.jsonl --with_titles", "item_text_dict.pkl does not exist")
    shop.refuse("--with_titles", "Give --output, too")


def test_excluded_histories_and_times(shop):
    dump(shop.folder / "test_times.pkl", {user: list(range(len(items))) for user, items in shop.lists.items()})
    results = shop.predict("--exclude_history")
    assert {found["group"] for found in results} == {"target is new", "target strictly later"}
    assert len({found["users"] for found in results}) == 1


@pytest.mark.parametrize("flags", ["--search beam", "--protocol released"])
def test_excluded_histories_need_exact_search(shop, flags):
    shop.refuse(f"--exclude_history {flags}", "--exclude_history needs exact search")


# Intervals and verdicts


def test_intervals_are_paired_and_near_those_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    gains = rng.random((2, 4000))
    (one, other) = compare.intervals(np.stack([gains[0] - gains[1], gains[0] * 0 + 0.25]))
    error = (gains[0] - gains[1]).std() / np.sqrt(4000)
    for side, share in (("low", 0.025), ("high", 0.975)):
        assert one[side] == pytest.approx(one["difference"] + norm.ppf(share) * error, abs=0.1 * error)
    assert other == {"difference": 0.25, "low": 0.25, "high": 0.25}  # users gain the same: no doubt is left
    assert compare.intervals(np.stack([gains[0] - gains[1]])) == [pytest.approx(one, rel=1e-9)]  # a fixed seed
    (alone,) = compare.intervals(np.array([[0.5]]))
    assert alone["difference"] == 0.5 and np.isnan(alone["low"])
    (nobody,) = compare.intervals(np.empty((1, 0)))
    assert np.isnan(nobody["difference"])


@pytest.mark.parametrize(
    "above, said",
    [
        ((0, 4, 4), "RecGPT beats all others, text (nothing of the domain) by 0.6"),
        ((4, 0, 4), "RecGPT loses to text (nothing of the domain) by 0.6131 NDCG@5, interval [0.6131, 0.6131]"),
        (
            (4, 4, 0),
            "RecGPT loses to steps (its log) by 0.6131 NDCG@5, interval [0.6131, 0.6131]; without a log the best is",
        ),
        ((4, 4, 4), "RecGPT and text (nothing of the domain) are level: +0.0000 NDCG@5, interval [0.0000, 0.0000]"),
    ],
)
def test_verdicts(above, said):
    names = ("RecGPT", "text", "steps")
    ranks = {
        name: Ranks(torch.full((9,), place), torch.ones(9).long()) for name, place in zip(names, above, strict=True)
    }
    needs = {"text": compare.NOTHING, "steps": compare.LOG}
    results = compare.measure(ranks, needs, {"all users": np.ones(9, dtype=bool)}, [1, 5])
    assert compare.verdict(results, 5).startswith(said)
    own = {**results[1], "method": compare.BEST_BLEND, "difference": 0.9, "low": 0.8, "high": 1.0}
    assert compare.verdict([*results, {**own, "ndcg@5": 1.0}], 5).startswith(said)  # a blend with RecGPT is no rival


def test_one_item_for_nearly_everyone_is_told(capsys):
    lists = np.array([[1, user % 7 + 2, -1] for user in range(20)])
    compare.report_coverage("RecGPT", compare.coverage(lists), 400, 3)
    said = capsys.readouterr().out
    assert "8 of 400 items in lists of 3; the most frequent stands in 100.0% of the lists" in said
    assert "the same item to nearly everyone" in said
    compare.report_coverage("RecGPT", compare.coverage(lists), 25, 3)  # of few candidates a list has many
    compare.report_coverage("RecGPT", compare.coverage(lists + 9 * np.arange(20)[:, None]), 400, 3)
    assert "everyone" not in capsys.readouterr().out


def test_several_processes_find_what_one_finds(shop):
    """With a blend, which the first process fits and writes."""
    folder, printed = shop.folder, []
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for start, name in (([], "one"), (torchrun, "two")):
        (folder / "blend.json").unlink(missing_ok=True)
        shop.type(f"--blend --exclude_history --test_batch_size 8 --output {folder}/{name}.jsonl")
        command = [sys.executable, *start, "predict.py", *sys.argv[1:]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums of two threads may differ in the last digit
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append([line for line in done.stdout.splitlines() if " s" not in line])
    assert (folder / "one.jsonl").read_text() == (folder / "two.jsonl").read_text()
    assert printed[0] == printed[1] and any(line.startswith("hit@1") for line in printed[0])
