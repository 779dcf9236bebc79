"""The plot of training: what its lines stand for."""

import json
import sys

import numpy as np
import pytest

from utils import plot_logs
from utils.cli import run
from utils.errors import InputError
from utils.figures import save_figure

SETTINGS = {"tf_layer": 2, "width": 64, "lr": 1e-3, "predict": "items"}


def write_log(path, losses, seed=0, guessing=True, **settings):
    """A log with a report of ten steps each, and an evaluation at the end."""
    start = {"start": {**SETTINGS, "seed": seed, "log_file": str(path), **settings}, "step": 0}
    start |= {"guessing_by": "item frequencies", "guessing_loss": 2.345} if guessing else {}
    steps = range(10, 10 * len(losses) + 10, 10)
    lines = [{"step": step, "loss": loss, "tokens": 100} for step, loss in zip(steps, losses, strict=True)]
    lines.append({"step": steps[-1], "eval_loss": losses[-1] + 1})
    path.write_text("".join(json.dumps(line) + "\n" for line in [start, *lines]))
    return str(path)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw, and return the axes."""
    figures = []

    def keep(figure, output):
        save_figure(figure, output)
        figures.append(figure)

    def draw(*words):
        monkeypatch.setattr(plot_logs, "save_figure", keep)
        monkeypatch.setattr(sys, "argv", ["plot_logs", *words, "--output", str(tmp_path / "plot.png")])
        plot_logs.main()
        return figures[-1].axes[0]

    return draw


def test_short_reports_do_not_stand_out():
    """The last step of an epoch has one hard history: its loss weighs as many tokens as it has."""
    records = [{"step": 10 * n, "loss": 2.0, "tokens": 100} for n in (1, 2, 3)]
    records += [
        {"step": 34, "loss": 2.0 * 30 / 40 + 4.0 * 10 / 40, "tokens": 40},
        {"step": 40, "loss": 2.0, "tokens": 60},
    ]
    records += [{"step": 43, "loss": 9.0, "tokens": 1}]
    line, weights = plot_logs.reports(records)
    assert line.steps.tolist() == [10, 20, 30, 43] and weights.tolist() == [100, 100, 100, 101]
    assert line.values[:3].tolist() == [2, 2, 2]
    assert line.values[3] == pytest.approx((40 * 2.5 + 60 * 2.0 + 9) / 101)
    mean = plot_logs.averaged(line, weights, 2)
    assert mean.steps.tolist() == [20, 30, 43]
    assert mean.values[-1] == pytest.approx((100 * 2 + 101 * line.values[3]) / 201)


def test_older_logs_are_weighed_by_steps():
    line, weights = plot_logs.reports([{"step": 110, "loss": 3}, {"step": 120, "loss": 2}, {"step": 125, "loss": 5}])
    assert line.steps.tolist() == [110, 125] and weights.tolist() == [10, 15]
    assert line.values.tolist() == [3, (10 * 2 + 5 * 5) / 15]
    line, _ = plot_logs.reports([{"step": 4, "loss": 3.0}])
    assert line.steps.tolist() == [4] and line.values.tolist() == [3]


def test_a_band_is_the_range_of_the_seeds(tmp_path, drawn):
    losses = np.array([[3, 2, 1], [4, 4, 1], [3, 3, 4.0]])
    logs = [write_log(tmp_path / f"{seed}.jsonl", found.tolist(), seed) for seed, found in enumerate(losses)]
    axes = drawn(*logs, "--band", "--smooth", "1")
    training, evaluation, guessing = axes.get_lines()
    assert training.get_ydata().tolist() == losses.mean(axis=0).tolist() and "3 seeds: mean, lowest to highest" in (
        training.get_label()
    )
    outline = axes.collections[0].get_paths()[0].vertices
    for step, column in zip((10, 20, 30), losses.T, strict=True):
        assert set(outline[outline[:, 0] == step, 1]) == {column.min(), column.max()}
    assert evaluation.get_ydata().tolist() == [losses[:, -1].mean() + 1]
    assert set(guessing.get_ydata()) == {2.345} and guessing.get_label() == "guessing by item frequencies: 2.35"
    assert axes.get_title() == "Pre-training: 2 layers, width 64, lr 0.001, predicts items"


def test_bands_are_told_apart_by_their_settings(tmp_path, drawn):
    logs = [
        write_log(tmp_path / f"{width}_{seed}.jsonl", [3.0, 2.0], seed, width=width)
        for width in (64, 128)
        for seed in (0, 1)
    ]
    axes = drawn(*logs, "--band", "--title", "$x_1 of mine")
    labels = [line.get_label() for line in axes.get_lines()]
    assert [label.split(":")[0] for label in labels] == 2 * ["width 64"] + 2 * ["width 128"] + [
        "guessing by item frequencies"
    ]
    assert axes.get_title() == "$x_1 of mine"
    assert len(drawn(*logs).collections) == 0  # without --band a line each


def test_a_log_without_settings_has_a_title_and_no_guess(tmp_path, drawn):
    (tmp_path / "old.jsonl").write_text('{"step": 10, "loss": 3}\n{"step": 20, "loss": 2}\n')
    axes = drawn(str(tmp_path / "old.jsonl"), "--band")
    assert axes.get_title() == "old: training and evaluation loss" and len(axes.get_lines()) == 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"step": 1, "loss": "3"}\n', "loss is '3', expected a number"),
        ('{"step": [1], "loss": 3}\n', "step is [1], expected a whole number"),
        ('{"loss": 3}\n', "a record without a step"),
        ('{"step": NaN, "loss": 3}\n', "step is nan, expected a whole number"),
        (f'{{"step": {"9" * 400}, "loss": 3}}\n', "step is a whole number of 1329 bits"),
        (f'{{"step": 1, "loss": {"9" * 400}}}\n', "loss is a whole number of 1329 bits"),
        (f'{{"step": 1, "eval_loss": {"9" * 400}}}\n', "eval_loss is a whole number of 1329 bits"),
        (f'{{"step": 1, "loss": 3, "tokens": {"9" * 400}}}\n', "tokens is a whole number of 1329 bits"),
        ('{"step": 1, "loss": 3, "tokens": -1}\n', "tokens is -1, expected a whole number"),
        (f'{{"step": 0, "start": {{}}, "guessing_loss": {"9" * 400}}}\n', "guessing_loss is a whole number of 1329"),
        ('{"step": 0, "start": {}, "guessing_loss": NaN}\n', "guessing_loss is nan, expected a finite number"),
        ('{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n', "no finite training loss after step 0"),
        ('{"step": 0, "loss": 3}\n', "no finite training loss after step 0"),
    ],
)
def test_odd_logs_are_refused(tmp_path, monkeypatch, capsys, lines, said):
    (tmp_path / "odd.jsonl").write_text(lines)
    monkeypatch.setattr(sys, "argv", ["plot_logs", str(tmp_path / "odd.jsonl"), "--output", str(tmp_path / "p.png")])
    with pytest.raises(SystemExit):
        run(plot_logs.main)
    assert said in capsys.readouterr().err and not (tmp_path / "p.png").exists()


@pytest.mark.parametrize("odd", [None, [1], {}, True, float("nan")])
def test_odd_settings_are_not_in_the_title(tmp_path, drawn, odd):
    log = write_log(tmp_path / "a.jsonl", [3.0, 2.0], lr=odd, width=odd)
    assert drawn(log).get_title() == "a: 2 layers, predicts items"


def test_names_that_matplotlib_would_obey(tmp_path, drawn):
    """As mathematics the first would be an error, and the others begin with what leaves them out of legends."""
    logs = [write_log(tmp_path / f"{name}.jsonl", [3.0, 2.0]) for name in ("$x_{$", "_a", "_b")]
    labels = drawn(*logs, "--smooth", "1").get_legend_handles_labels()[1]
    assert len(labels) == 7 and " _a: training" in labels


def test_where_the_loss_is_no_number_the_others_are_drawn(tmp_path, drawn):
    lines = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": float("nan")}, {"step": 30, "loss": 2.0}]
    lines += [{"step": step, "eval_loss": loss} for step, loss in ((10, 4.0), (20, float("nan")), (30, 5.0))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    axes = drawn(str(tmp_path / "a.jsonl"))
    assert axes.get_lines()[0].get_marker() == "o", "no line joins single values"
    assert [text.get_text() for text in axes.texts] == ["4.000"], "the lowest evaluation"


def test_a_band_says_whose_evaluations_it_has(tmp_path, drawn):
    logs = [write_log(tmp_path / f"{seed}.jsonl", [3.0, 2.0], seed) for seed in (0, 1)]
    text = (tmp_path / "0.jsonl").read_text().splitlines()
    (tmp_path / "0.jsonl").write_text("\n".join(text[:-1]) + "\n")
    training, evaluation, _ = drawn(*logs, "--band").get_lines()
    assert "(2 seeds" in training.get_label() and "evaluation (1 of 2 seeds" in evaluation.get_label()
    assert evaluation.get_ydata().tolist() == [3.0]


def test_seeds_without_a_common_step_are_no_band(tmp_path, drawn):
    logs = [write_log(tmp_path / f"{seed}.jsonl", [3.0, 2.0], seed) for seed in (0, 1)]
    for name, kind in (("loss", "training"), ("eval_loss", "evaluation")):
        lines = [json.loads(line) for line in (tmp_path / "1.jsonl").read_text().splitlines()]
        moved = [line | {"step": line["step"] + 1000} if name in line else line for line in lines]
        (tmp_path / "2.jsonl").write_text("".join(json.dumps(line) + "\n" for line in moved))
        with pytest.raises(InputError, match=f"--band: 0, 2 share no step of {kind}. Draw them without --band"):
            drawn(logs[0], str(tmp_path / "2.jsonl"), "--band")


def test_two_logs_of_one_seed_are_no_band(tmp_path, monkeypatch, capsys):
    logs = [write_log(tmp_path / f"{name}.jsonl", [2.0], 0, data_path=name) for name in ("a", "b")]
    monkeypatch.setattr(sys, "argv", ["plot_logs", *logs, "--band", "--output", str(tmp_path / "p.png")])
    with pytest.raises(SystemExit):
        run(plot_logs.main)
    assert "a and b have the same settings and seed 0, but data_path 'a' and 'b'" in capsys.readouterr().err
