"""utils/plots: the numbers behind the figures, the figures as files, and files that do not fit."""

import csv
import doctest
import importlib
import json
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch

from ae_trainer import load_tokenizer
from eval import evaluate
from model import RecGPT, RecGPTConfig
from tests.conftest import dump
from tests.test_compare import ITEMS, USERS, Shop
from utils.checkpoint import save_state
from utils.cli import run
from utils.data import make_batch
from utils.errors import InputError
from utils.figures import figure_for, marks, plain, save_figure
from utils.fsq import sharing
from utils.packed import pack
from utils.plots import code_positions, codebook, cross_domain, embedding_map, slices

TEXTLESS = 2  # items of the shop
FIGURE = b"\x89PNG"


class Plotted(Shop):
    """The shop of test_compare.py, with texts, on which figures are drawn."""

    def __init__(self, folder, monkeypatch, capsys):
        super().__init__(folder, monkeypatch, capsys)
        texts = {item: {"title": f"$item {item}$", "kind": ["red", "blue, x", None][item % 3]} for item in range(ITEMS)}
        dump(folder / "item_text_dict.pkl", texts)

    def plot(self, name: str, flags: str, *more: str) -> str:
        """What a figure's command prints; the figure must be there."""
        output = self.folder / f"{name}.png"
        output.unlink(missing_ok=True)
        self.monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags.format(self.folder).split(), *more])
        sys.argv += ["--output", str(output)]
        run(importlib.import_module(f"utils.plots.{name}").main)
        assert output.read_bytes().startswith(FIGURE)
        return self.capsys.readouterr().out

    def refuse_plot(self, name: str, flags: str, *said: str) -> None:
        """The command must end with one message, and leave no figure."""
        with pytest.raises(SystemExit) as stopped:
            self.plot(name, flags)
        message = self.capsys.readouterr().err.strip().splitlines()[-1]
        assert stopped.value.code == 2 and not [*self.folder.glob("*.png"), *self.folder.glob(".*partial")]
        for words in said:
            assert words in message, message


@pytest.fixture
def shop(tmp_path, monkeypatch, capsys) -> Plotted:
    return Plotted(tmp_path, monkeypatch, capsys)


def table(printed: str) -> dict[str, list[str]]:
    """The rows of printed tables by their first cell."""
    rows = [[cell for cell in line.split("  ") if cell] for line in printed.splitlines()]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows if len(row) > 1}


def test_examples():
    for module in (code_positions, codebook, cross_domain, embedding_map, slices):
        failed, tried = doctest.testmod(module, extraglobs={"np": np})
        assert tried and not failed, module


def test_marks_differ_and_text_is_no_mathematics(tmp_path):
    assert len({(option["color"], option["marker"]) for option in marks(77)}) == 77
    figure, axis = figure_for(str(tmp_path / "a.svg"))
    axis.set_title(plain("$\\frac{$ a\nb"))  # as mathematics it would be an error
    save_figure(figure, str(tmp_path / "a.svg"))
    assert (tmp_path / "a.svg").read_text().rstrip().endswith("</svg>")


# Code positions


def trained_on(shop, last_only):
    """The shop's test set, a model, and histories of which all or the last items are targets."""
    torch.manual_seed(0)
    shop.monkeypatch.setattr(sys, "argv", f"x --dataset {shop.folder} --vae_ckpt {shop.folder}/vae.pt".split())
    data, _ = code_positions.load_data(code_positions.parse(), torch.device("cpu"))
    model = RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=data.catalog.embeddings.shape[1])).eval()
    return model, data._replace(last_only=last_only)


@pytest.mark.parametrize("last_only", [True, False])
def test_the_mean_over_positions_is_the_loss_of_eval(shop, last_only):
    model, data = trained_on(shop, last_only)
    found = code_positions.measure(model, data, 7)
    assert found.loss.mean() == pytest.approx(evaluate(model, data, 7, None).loss, rel=1e-5)
    assert len(set(found.loss.round(3))) == len(found.loss)  # positions are not mixed up into one mean


def test_loss_and_accuracy_are_those_of_each_user_by_itself(shop):
    """A head that is certain of the codes of item 3 is right where the target has these."""
    model, data = trained_on(shop, True)
    histories, targets = data.sequences.split_targets()
    wanted, right = data.catalog.codes[targets], data.catalog.codes[targets[0]]
    with torch.no_grad():
        logits = model.next_item_logits(make_batch(histories, data.catalog))
        loss = -logits.log_softmax(-1).gather(-1, torch.from_numpy(wanted.astype(np.int64))[..., None])[..., 0]
        found = code_positions.measure(model, data, 16)
        np.testing.assert_allclose(found.loss, loss.mean(0), rtol=1e-5)
        shop.monkeypatch.setattr(RecGPT, "logits", lambda _, hidden: certain(right, len(hidden)))
        accuracy = code_positions.measure(model, data, 16).accuracy
    np.testing.assert_allclose(accuracy, (wanted == right).mean(0))
    assert accuracy.min() > 0


def certain(codes, tokens):
    """Logits (T, V) of tokens that stand for the K positions in turn."""
    logits = torch.zeros(tokens, int(codes.max()) + 2)
    logits[torch.arange(tokens), torch.from_numpy(codes.astype(np.int64)).repeat(tokens // len(codes))] = 9.0
    return torch.nn.functional.pad(logits, (0, 20_000 - logits.shape[1]))


def test_no_constant_guess_is_better_than_by_frequency():
    codes = np.random.default_rng(0).integers(0, 5, (200, 3)) ** 2
    found = code_positions.guess(codes)
    for position, column in enumerate(codes.T):
        share = np.bincount(column) / len(column)
        others = 0.9 * share + 0.1 / len(share)
        assert found.loss[position] < -np.log(others[column]).mean()
        assert found.accuracy[position] == max((column == code).mean() for code in range(17))


def test_code_positions_as_a_command(shop):
    config = RecGPTConfig(layers=1, width=64, embedding_width=32, predicts="items")
    save_state(shop.folder / "items.pt", RecGPT(config).state_dict(), {"config": {"heads": 1, "predicts": "items"}})
    flags = "--dataset {0} --vae_ckpt {0}/vae.pt --device cpu --ckpt_path {0}/"
    printed = shop.plot("code_positions", flags + "model.pt", str(shop.folder / "items.pt"))
    assert f"{USERS} targets" in printed and "items.pt is left out" in printed
    rows = table(printed)["model"]
    assert len(rows) == 5 and float(rows[-1]) == pytest.approx(np.mean([float(cell) for cell in rows[:-1]]), abs=1e-4)
    (shop.folder / "code_positions.png").unlink()
    shop.refuse_plot("code_positions", flags + "items.pt", "no checkpoint predicts codes")


# Codebook


def test_the_codebook_is_the_same_from_every_source(shop):
    """A token list, a dict, the packed form, and texts, of which those without are left out."""
    tokenizer, rows = load_tokenizer(shop.folder / "vae.pt"), np.load(shop.folder / "item_text_embeddings.npy")
    printed = shop.plot("codebook", "--dataset {0} --vae_ckpt {0}/vae.pt --device cpu")
    assert f"{TEXTLESS} of {ITEMS} items have no text" in printed and f"{ITEMS - TEXTLESS} items" in printed
    codes = tokenizer.tokenize(rows)
    with_text = codes[rows.any(axis=1)]
    expected = table(printed)["all"]
    assert expected[0] == str(len(np.unique(with_text)))
    shared = sum((with_text == row).all(axis=1).sum() > 1 for row in with_text) / len(with_text)
    assert f"{shared:.1%} share all their codes" in printed

    np.save(shop.folder / "all_item_text_embeddings.npy", rows[rows.any(axis=1)])
    dump(shop.folder / "token_id_list.pkl", with_text.tolist())
    dump(shop.folder / "by_id.pkl", {7 * item: found for item, found in enumerate(with_text.tolist())})
    dump(shop.folder / "train.pkl", {"a": [1, 2]})
    pack(shop.folder)
    for source in ("token_id_list.pkl", "by_id.pkl", "packed"):
        found, _ = codebook.load_codes(Namespace(dataset=None, codes=shop.folder / source))
        np.testing.assert_array_equal(found, with_text)
    assert table(shop.plot("codebook", "--codes {}"))["all"] == expected


def test_usage_and_collisions():
    codes = np.array([[0, 3], [0, 3], [1, 2], [1, 3]])
    counts = codebook.count(codes)
    assert {name: found.tolist() for name, found in counts.items()} == {
        "1": [2, 2, 0, 0],
        "2": [0, 0, 1, 3],
        "all": [2, 2, 1, 3],
    }
    assert codebook.Usage.of(counts["1"]) == (2, 2.0, 0.5) and sharing(codes) == 2


def test_codes_that_are_none(shop):
    dump(shop.folder / "token_id_list.pkl", [[1, 2, 3, 4], [1, 2, 3, -4]])
    shop.refuse_plot("codebook", "--codes {}/token_id_list.pkl", "row 1", "make_token_list.py")
    shop.refuse_plot("codebook", "--codes {}/none.pkl", "none.pkl does not exist")


# Slices


@pytest.mark.parametrize("seed", range(4))
def test_bins_are_ranges_that_hold_everyone_once(seed):
    values = np.random.default_rng(seed).geometric(0.2, 300) - 1
    names, bins = slices.quantile_bins(values, 4)
    assert names[0] == "0" and set(bins) == set(range(len(names))) and len(names) <= 5
    ends = [(values[bins == number].min(), values[bins == number].max()) for number in range(len(names))]
    assert all(before[1] < after[0] for before, after in zip(ends, ends[1:], strict=False))
    assert min(np.bincount(bins)[1:]) > 300 / 4 / 3


def test_slices_are_of_the_right_users(shop):
    shop.predict(f"--per_user {shop.folder}/users.npz")
    lengths = np.array([len(items) - 1 for items in shop.lists.values()])
    counts = np.bincount([item for items in shop.lists.values() for item in items[:-1]], minlength=ITEMS)
    popularity = counts[[items[-1] for items in shop.lists.values()]]
    printed = shop.plot("slices", "{0}/users.npz --dataset {0} --methods RecGPT transitions --bins 3")
    with np.load(shop.folder / "users.npz") as saved:
        gains = saved["ndcg: transitions"]
    parts = printed.split("NDCG at the largest --topk, by ")[1:]
    assert [part.split(", with")[0] for part in parts] == [
        "items of the history",
        "times that the target occurs in train.pkl",
    ]
    for values, part in zip((lengths, popularity), parts, strict=True):
        bins = part.splitlines()[1].split()
        rows = table(part)
        for name, users, cell in zip(bins, rows["users"], table_cells(part, "transitions"), strict=True):
            low, _, high = name.partition("-")
            members = (values >= int(low)) & (values <= int(high or low))
            assert members.sum() == int(users) and cell[0] == pytest.approx(gains[members].mean(), abs=1e-4)
            assert cell[1] <= cell[0] <= cell[2]
        assert sum(map(int, rows["users"])) == USERS
    assert "repeat recent" not in printed
    new = shop.plot("slices", "{0}/users.npz --dataset {0} --group", "target is new")
    assert sum(map(int, table(new)["users"])) == sum(items[-1] not in items[:-1] for items in shop.lists.values())


def table_cells(part: str, name: str) -> list[list[float]]:
    """Mean, low and high of each bin in a row."""
    (line,) = [line for line in part.splitlines() if line.startswith(name)]
    numbers = [float(word.strip("[],")) for word in line.removeprefix(name).split()]
    return [numbers[start : start + 3] for start in range(0, len(numbers), 3)]


def test_slices_without_a_log_or_of_other_users(shop):
    shop.predict(f"--cold --per_user {shop.folder}/cold.npz")
    (shop.folder / "train.pkl").unlink()
    printed = shop.plot("slices", "{0}/cold.npz --dataset {0} --cold --methods RecGPT")
    assert "popularity of the target is left out" in printed and printed.count("users ") == 1
    (shop.folder / "slices.png").unlink()
    shop.refuse_plot("slices", "{0}/cold.npz --dataset {0} --methods BERT", "--methods BERT", "RecGPT, repeat recent")
    dump(shop.folder / "test.pkl", {user: [*items, items[0]] for user, items in shop.lists.items()})
    shop.refuse_plot("slices", "{0}/cold.npz --dataset {0}", "about other users", "'target in history' differs")
    dump(shop.folder / "test.pkl", {"a": [1, 2]})
    shop.refuse_plot("slices", "{0}/cold.npz --dataset {0}", f"about {USERS} users", "has 1")


def test_the_users_of_a_file_are_those_of_the_data_set_in_order(shop):
    shop.predict(f"--per_user {shop.folder}/users.npz")
    flags = "{0}/users.npz --dataset {0} --methods RecGPT"
    with np.load(shop.folder / "users.npz") as saved:
        arrays = dict(saved)
    for users in (arrays["users"][::-1], np.char.add("x", arrays["users"].astype(str)), arrays["users"][1:]):
        np.savez(shop.folder / "users.npz", **arrays | {"users": users})
        shop.refuse_plot("slices", flags, "is about other users than", "Name the data set that it was made from")
    del arrays["users"]  # as older versions wrote it
    np.savez(shop.folder / "users.npz", **arrays)
    assert "RecGPT" in table(shop.plot("slices", flags))


def test_files_that_are_no_results_of_users(shop):
    yes, gains = np.ones(USERS, dtype=bool), np.zeros(USERS)
    for arrays, said in (
        ({"ndcg: A": np.array([{}] * USERS), "group: all users": yes}, "cannot be read"),
        ({"ndcg: A": gains}, "no arrays"),
        ({"ndcg: A": gains[1:], "group: all users": yes}, "for each user"),
        ({"ndcg: A": gains, "group: all users": gains}, "for each user"),
        ({"ndcg: A": gains + np.nan, "group: all users": yes}, "NaN"),
        ({"ndcg: A": gains + 1e308, "group: all users": yes}, "not from 0 to 1"),
        ({"ndcg: A": gains, "group: all users": ~yes}, "is empty"),
    ):
        np.savez(shop.folder / "users.npz", **arrays)
        shop.refuse_plot("slices", "{0}/users.npz --dataset {0}", said)
    (shop.folder / "users.npz").write_bytes(b"PK\x03\x04 damaged")
    shop.refuse_plot("slices", "{0}/users.npz --dataset {0}", "cannot be read")


# Cross-domain


def result(checkpoint, dataset, value, **others):
    setting = {"cold": False, "protocol": "corrected", "search": "exact", "exclude_history": False}
    named = {"dataset": dataset, "ckpt_path": checkpoint, "method": "RecGPT", "group": "all users"}
    return {**setting, **named, "ndcg@1": 0.5, "ndcg@5": value, **others}


def write_results(shop, *results):
    (shop.folder / "results.jsonl").write_text("".join(json.dumps(found) + "\n" for found in results))


def test_the_matrix_of_domains(shop):
    """Labels from the JSON beside a checkpoint, the data sets' order, the last of two results, and a gap."""
    paths = [str(shop.folder / name) for name in ("a.pt", "b.pt", "c.pt")]
    for path, data_path in zip(paths, ("x/pets_log", "x/toys/whole", "x/pre_train"), strict=True):
        save_state(path, {"w": torch.zeros(1)}, {"training": {"data_path": data_path}})
    a, b, c = paths
    write_results(
        shop,
        result(b, "toys", 0.9),
        result(b, "toys", 0.4),
        result(b, "data/test/pets", 0.1),
        result(c, "pets", 0.2),
        result(a, "pets", 0.3),
        result(a, "pets", 0.8, method="popularity"),
        result(a, "pets", 0.7, group="target is new"),
        result(a, "toys", None),
    )
    shop.plot("cross_domain", "{}/results.jsonl")
    rows = list(csv.reader((shop.folder / "cross_domain.csv").open()))
    assert rows == [
        ["trained on", "toys", "pets"],
        ["toys", "0.4", "0.1"],
        ["pets", "", "0.3"],
        ["pre_train", "", "0.2"],
    ]
    printed = shop.plot("cross_domain", "{}/results.jsonl --metric ndcg@1 --label", f"all of them={c}")
    assert table(printed)["all of them"] == ["-", "0.5000"]


def test_data_sets_of_one_name_are_told_apart(shop):
    """By their paths; a label may name one of them. A name that a spreadsheet would obey is text."""
    paths = [str(shop.folder / name) for name in ("a.pt", "b.pt")]
    for path in paths:
        save_state(path, {"w": torch.zeros(1)}, {"training": {"data_path": "x/shop/whole"}})
    both = [result(paths[0], name, value) for name, value in (("shop", 0.1), ("o/shop", 0.9), ("=cmd()", 0.2))]
    write_results(shop, *both, result(paths[1], "o/shop", 0.3))
    shop.plot("cross_domain", "{}/results.jsonl --label", f"o/shop={paths[1]}")
    rows = list(csv.reader((shop.folder / "cross_domain.csv").open()))
    assert rows == [
        ["trained on", "data/test/shop", "o/shop", "'=cmd()"],
        ["o/shop", "", "0.3", ""],
        ["shop", "0.1", "0.9", "0.2"],
    ]


def test_the_largest_k_is_a_number_that_can_be_one():
    odd = {"ndcg@" + "9" * 5000: 0.1, "ndcg@²": 0.2, "ndcg@١٠٠": 0.3}
    assert cross_domain.last_ndcg(odd | {"ndcg@5": 0.1}) == "ndcg@5"
    with pytest.raises(InputError, match="has no NDCG"):
        cross_domain.last_ndcg(odd)


def test_results_that_make_no_matrix(shop):
    one = result("a.pt", "pets", 0.3)
    for results, flags, said in (
        ([one, result("a.pt", "toys", 0.3, cold=True)], "", "line 2 has {'cold': True"),
        ([one, {"ckpt_path": "a.pt", "loss": 1.0}], "", "line 2: found"),
        ([one], "--group nobody", "RecGPT, all users"),
        ([one], "--metric hit@7", "ndcg@1, ndcg@5"),
        ([result("a.pt", "pets", "much")], "", "'much'"),
        ([one], "--label A=b.pt", "are of a.pt"),
        ([one, result("b.pt", "pets", 0.3)], "--label A=a.pt A=b.pt", "a.pt and b.pt would both be called A"),
    ):
        write_results(shop, *results)
        shop.refuse_plot("cross_domain", "{}/results.jsonl " + flags, said)
    assert not (shop.folder / "cross_domain.csv").exists()


# The map


def test_the_map_is_along_the_widest_directions():
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((50, 6)) * [9, 1, 1, 5, 1, 1] + 3).astype(np.float32)
    found = embedding_map.principal_map(rows)
    centred = rows - rows.mean(axis=0)
    shares = np.linalg.svd(centred, compute_uv=False) ** 2 / (centred**2).sum()
    assert found.axes == tuple(f"principal component {n + 1} ({shares[n]:.1%} of the variance)" for n in (0, 1))
    for place, column in ((0, 0), (1, 3)):
        assert abs(np.corrcoef(found.places[:, place], rows[:, column])[0, 1]) > 0.9
    np.testing.assert_allclose((found.places**2).sum(0) / (centred**2).sum(), shares[:2], rtol=1e-4)


def test_values_of_a_field(tmp_path):
    """Without what more than half have; the most frequent of an item's others; lists as well as texts."""
    texts = [{"c": "all, a"}, {"c": ["all", "a", "b"]}, {"c": "b, all, a"}, {"c": "all, b"}, {}, None, {"c": "rare"}]
    dump(tmp_path / "texts.pkl", dict(enumerate(texts)))
    found = embedding_map.field_values(tmp_path / "texts.pkl", "c", np.arange(7))
    top = {"a", "b"}
    assert found[0] == "a" and found[3] == "b" and {found[1]} == {found[2]} <= top
    assert found[4:] == [embedding_map.OTHER] * 2 + ["rare"]


def test_maps_as_commands(shop):
    flags = "--dataset {0} --vae_ckpt {0}/vae.pt --device cpu"
    printed = shop.plot("embedding_map", flags)
    assert f"{TEXTLESS} of {ITEMS} items have no text" in printed and f": {ITEMS - TEXTLESS} items" in printed
    printed = shop.plot("embedding_map", flags + " --color kind --items 20 --position 4")
    values = {name: int(cells[0]) for name, cells in table(printed).items() if cells[0].isdecimal()}
    assert sum(values.values()) == 20 and set(values) <= {"red", "blue", "x", embedding_map.OTHER}
    (shop.folder / "embedding_map.png").unlink()
    shop.refuse_plot("embedding_map", flags + " --color size", "--color size", "title, kind")
    shop.refuse_plot("embedding_map", flags + " --position 5", "has 4 codes")
    shop.refuse_plot("embedding_map", flags + " --method tsne --items 12", "found 12")


def test_tsne_is_the_same_from_the_same_seed():
    pytest.importorskip("sklearn")
    rows = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    first, same = (embedding_map.tsne_map(rows, 3).places for _ in range(2))
    assert first.shape == (40, 2) and (first == same).all()


@pytest.mark.parametrize("name", ["code_positions", "codebook", "slices", "cross_domain", "embedding_map"])
def test_a_figure_of_no_known_format_is_refused_before_the_work(shop, name):
    """None of the files that it would read is there."""
    read = {"codebook": "--codes nowhere", "slices": "nowhere --dataset no", "cross_domain": "nowhere"}.get(name, "")
    shop.monkeypatch.setattr(sys, "argv", [name, *read.split(), "--output", str(shop.folder / "figure.xyz")])
    with pytest.raises(SystemExit) as stopped:
        run(importlib.import_module(f"utils.plots.{name}").main)
    assert stopped.value.code == 2 and "figure.xyz: expected a name that ends in" in shop.capsys.readouterr().err
