"""benchmarks/scaling.py: the law is found where it is there, and not where it is not; a grid that goes on."""

import json
import re
from argparse import Namespace

import numpy as np
import pytest

from benchmarks import real_data, scaling
from benchmarks.scaling_law import Law, Runs, fit, predict_largest, solve
from tests import runs
from tests.conftest import House
from utils.datasets import load_eval, load_pre_train
from utils.errors import InputError
from utils.pickles import load_pickle

LAW = Law(4.0, 60.0, 0.35, 300.0, 0.45)
PARAMETERS, TOKENS = (1.5e5, 5.9e5, 2.36e6), (3e5, 6e5, 1.5e6, 3e6, 6e6)


def synthetic(noise=0.0, seed=0, law=LAW, parameters=PARAMETERS, tokens=TOKENS):
    """Runs whose losses obey a law, but for errors of log loss of this deviation."""
    sizes, seen = (side.ravel() for side in np.meshgrid(parameters, tokens))
    errors = noise * np.random.default_rng(seed).standard_normal(len(sizes))
    return Runs(sizes, seen, law.loss(sizes, seen) * np.exp(errors))


# The law


def test_exact_losses_give_the_law_back():
    found = fit(synthetic(), draws=3)
    assert found.law == pytest.approx(LAW, rel=1e-4) and not found.doubts and found.r_squared > 0.999999
    check = predict_largest(synthetic())
    assert check.predicted == pytest.approx(check.measured, rel=1e-5) and check.best_smaller > check.measured + 0.05


@pytest.mark.parametrize("law", [LAW, Law(3.0, 20.0, 0.25, 900.0, 0.5)])
def test_exponents_are_within_their_intervals(law):
    found = fit(synthetic(0.001, 3, law), draws=30)
    assert not found.doubts
    for true, (low, high), value in ((law.alpha, found.alpha, found.law.alpha), (law.beta, found.beta, found.law.beta)):
        assert low < true < high and low < value < high and 0.001 < high - low < 0.2
    assert 0.99 < found.r_squared < 1
    check = predict_largest(synthetic(0.001, 3, law))
    assert abs(check.predicted - check.measured) < 0.05 < check.best_smaller - check.measured


def test_one_run_gone_wrong_does_not_move_the_law():
    """It is a Huber loss: an error counts linearly, not squared."""
    given = synthetic()
    given.losses[7] *= 1.1
    law = solve(given)[0]
    assert (law.alpha, law.beta) == pytest.approx((LAW.alpha, LAW.beta), abs=0.01)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (synthetic(tokens=TOKENS[:2]), "6 run(s), at least 8 are needed"),
        (synthetic(parameters=PARAMETERS[:2]), "2 different numbers of parameters, at least 3 are needed"),
        (synthetic(law=Law(3.0, 0.0, 0.3, 0.0, 0.3)), "all losses are the same"),
        (synthetic(tokens=(1e6, 1.001e6, 1.002e6, 3e6)), "2 different numbers of tokens, at least 3 are needed"),
    ],
)
def test_too_few_runs_are_not_fitted(given, said):
    found = fit(given)
    assert found.law is None and said in "; ".join(found.doubts) and predict_largest(given) is None
    assert "is not fitted" in " ".join(scaling.sentences(found, given, 200))


@pytest.mark.parametrize(
    ("law", "noise", "name"),
    [
        (Law(4.0, 0.0, 0.3, 300.0, 0.45), 0.001, "alpha"),  # width changes nothing
        (Law(4.0, 60.0, 0.35, 0.0, 0.3), 0.001, "beta"),
        (LAW, 0.03, "alpha"),  # noise of the size of what is sought
    ],
)
def test_an_exponent_that_the_runs_do_not_show_is_not_told(law, noise, name):
    given = synthetic(noise, 2, law)
    found = fit(given, draws=10)
    assert any(name in doubt for doubt in found.doubts)
    said = " ".join(scaling.sentences(found, given, 40))
    assert "the exponents are not identified, so none is given" in said and "N^" not in said
    assert f"{found.law.alpha:.3f}" not in said and f"{found.law.beta:.3f}" not in said


def test_the_largest_run_is_foretold_without_any_of_its_seeds():
    given = synthetic()
    twice = Runs(*(np.concatenate((side, side)) for side in given))
    largest = (twice.parameters == PARAMETERS[-1]) & (twice.tokens == TOKENS[-1])
    twice.losses[largest] = 9.0
    check = predict_largest(twice)
    assert check.measured == 9.0 and check.predicted == pytest.approx(LAW.loss(PARAMETERS[-1], TOKENS[-1]), rel=1e-5)
    assert predict_largest(twice.select(~largest)) is None, "the largest model has not seen the most tokens"


# Rows and the report


ROW = {"users": 9, "settings": "--lr 1", "layers": 3, "epochs": 1, "trained_on": "a", "held_out": "b", "seed": 0}


def rows(noise=0.001, **changed):
    return [
        ROW | {"width": int(n**0.5), "share": d / 6e6, "parameters": int(n), "tokens": int(d), "loss": loss}
        | {"all_parameters": int(n + 3e4 * n**0.5)} | changed
        for n, d, loss in zip(*synthetic(noise), strict=True)
    ]  # fmt: skip


def written(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"--work {folder} --fit_only --draws 10"


def report(monkeypatch, capsys, flags):
    monkeypatch.setattr("sys.argv", ["scaling.py", *flags.split()])
    scaling.main()
    return capsys.readouterr().out


def test_runs_at_hand_are_fitted_and_drawn(tmp_path, monkeypatch, capsys):
    said = report(monkeypatch, capsys, written(tmp_path, rows()[::-1]))
    table, fits = (tmp_path / "scaling.md").read_text().split("\n\n", 1)
    lines = table.splitlines()
    assert len(lines) == 17 and lines[2].startswith("| 387 | 0.05 | 0 | 150,000 |") and "| 6,000,000 |" in lines[-1]
    (alpha, low, high) = (
        float(re.search(pattern, fits).group(1))
        for pattern in (r"N\^(0\.\d+)", r"alpha is in \[(0\.\d+)", r"alpha is in \[0\.\d+, (0\.\d+)\]")
    )
    assert low < 0.35 < high and low < alpha < high
    assert "Parameters with tables: " in fits and all(part in said for part in fits.strip().split("\n\n"))
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_few_runs_are_drawn_without_a_law(tmp_path, monkeypatch, capsys):
    said = report(monkeypatch, capsys, written(tmp_path, rows()[:2]))
    assert "the law is not fitted: 2 run(s), at least 8 are needed" in said and (tmp_path / "scaling.png").exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "has no finished run. Run the grid without --fit_only"),
        ([{"loss": 3}], "results.jsonl, line 1: no width, share, seed"),
        ([*rows()[:1], *rows(epochs=2)[:1]], "line 2: epochs differs from that of the first line"),
        (rows(loss="low"), "line 1: loss is 'low', expected a number from 0.001 to 1000"),
        (rows(tokens=0), "line 1: tokens is 0, expected a whole number from 1 to 9.22337e+18"),
        (rows(parameters=True), "line 1: parameters is True, expected a whole number"),
        (rows(tokens=10**400), "line 1: tokens is a whole number of 1329 bits, expected a whole number"),
        (rows(parameters=1e308), "line 1: parameters is 1e+308, expected a whole number"),
        (rows(share=5), "line 1: share is 5, expected a number from 1e-09 to 1"),
        (rows(seed=1.5), "line 1: seed is 1.5, expected a whole number from 0"),
        (rows(width=0.5), "line 1: width is 0.5, expected a whole number from 1"),
        (rows(loss=1e-9), "line 1: loss is 1e-09, expected a number from 0.001"),
        (
            rows() + [rows()[2] | {"loss": 9.9, "seed": 0.0}],
            "lines 3 and 16: both are the run of width 1536, share 0.05",
        ),
    ],
)
def test_rows_that_cannot_be_fitted(tmp_path, monkeypatch, capsys, lines, said):
    flags = written(tmp_path / "work", lines)
    House.refuse(Namespace(folder=tmp_path), monkeypatch, capsys, f"python benchmarks/scaling.py {flags}", said)
    assert not (tmp_path / "work/scaling.md").exists()


def test_bad_flags(tmp_path, monkeypatch, capsys):
    for flags, said in (
        ("--fit_only", "results.jsonl does not exist"),
        ("", "no training data were named"),
        ("nowhere", "nowhere/train.pkl does not exist"),
    ):
        command = f"python benchmarks/scaling.py {flags} --work {tmp_path}"
        House.refuse(Namespace(folder=tmp_path), monkeypatch, capsys, command, said)


# The grid


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaling")
    runs.make_data(folder, 60)
    return folder


def test_held_out_users_are_in_no_share(data, place):
    trained_on, held_out = scaling.split(data / "pt", place, 10)
    everyone = sorted(map(tuple, load_pickle(data / "pt/train.pkl", dict, "").values()))
    train, aside = load_pre_train(trained_on), load_eval(held_out)
    lists = [aside.ids[items].tolist() for items in map(np.array, aside.sequences.lists())]
    assert sorted(map(tuple, train.sequences.lists() + lists)) == everyone and len(lists) == 10
    assert len(train.catalog) == len(load_pre_train(data / "pt").catalog), "all items stay"
    assert np.array_equal(aside.catalog.codes, train.catalog.codes[aside.ids]) and not aside.last_only
    rows = np.arange(len(aside.ids))
    assert np.array_equal(aside.catalog.embed(rows), train.catalog.embed(aside.ids))
    before = (held_out / "eval.pkl").stat().st_mtime_ns
    scaling.split(data / "pt", place, 10)
    assert (held_out / "eval.pkl").stat().st_mtime_ns == before, "once"
    with pytest.raises(InputError, match="--held_out 60: .* has 60 users"):
        scaling.split(data / "pt", place, 60)


def test_a_grid_goes_on_where_it_stopped(data, place, monkeypatch, capsys):
    """By the program's own commands; a run that was finished is not made again, and other settings are refused."""
    made = []

    def call(command, **_):
        script = command[1].removesuffix(".py")
        runs.finish(place, " ".join(command[2:]), script=script)
        made.append(script)
        if len(made) == 3:  # the second run has been trained, and not evaluated
            raise KeyboardInterrupt
        return Namespace(returncode=0)

    monkeypatch.setattr(real_data.subprocess, "run", call)
    flags = f"{data}/pt --work {place}/work --widths 64 --shares 0.5 1 --held_out 10 --tf_layer 1 --epoch 2 --settings"
    command = ["scaling.py", *flags.split(), "--batch_size 8 --lr 1e-3"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(KeyboardInterrupt):
        scaling.main()
    scaling.main()
    assert made == ["pre_train", "eval", "pre_train", "pre_train", "eval"]
    found = runs.records(place / "work/results.jsonl")
    assert [(row["width"], row["share"], row["users"]) for row in found] == [(64, 0.5, 25), (64, 1.0, 50)]
    lengths = load_pre_train(place / "work/train").sequences.lengths
    assert found[1]["tokens"] == 2 * 4 * (lengths - 1).sum() > 1.5 * found[0]["tokens"]
    tables = 64 * (2 * 15361 + 1024)
    assert all(row["all_parameters"] - row["parameters"] == tables and 0 < row["loss"] < 12 for row in found)
    assert found[0]["parameters"] == 12 * 64**2 + 13 * 64 + 64 * runs.WIDTH // 4 + 6 * 64
    capsys.readouterr()
    scaling.main()
    assert len(made) == 5 and "made in" not in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command[:-1], "--lr 2e-3"])
    with pytest.raises(InputError, match="has runs with settings --batch_size 8 --lr 1e-3, and now it is --lr 2e-3"):
        scaling.main()
