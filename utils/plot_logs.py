"""Draw training and evaluation loss from the logs of pre-training.

    python -m utils.plot_logs logs/pre_train.jsonl --output figures/pre_train.png
    python -m utils.plot_logs logs/small.jsonl logs/large.jsonl --log_x
    python -m utils.plot_logs logs/seed_0.jsonl logs/seed_1.jsonl logs/seed_2.jsonl --band --title "Three seeds"

Of a run that was resumed, the steps that were taken twice are drawn as they went the second time; of several runs in
one file, only the last is drawn.

Averages weigh each report by the target tokens that it covers (in older logs, by its steps), and a report that covers
few, such as the last one of an epoch, is drawn together with the next.

--band draws runs that share all settings but the seed and their paths as one line, the mean, in a band from the lowest
to the highest of them. The dashed line is the loss of guessing by the frequencies of codes or items, which newer logs
note.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.alike import PATHS, shared_settings
from utils.cli import parser, positive_int, run
from utils.errors import InputError, shown
from utils.figures import figure_for, plain, save_figure
from utils.files import read_jsonl

REMEDY = "Give a file that pre_train.py wrote (--log_file)."
MOST = 2**53  # steps and tokens: whole numbers that a float holds
LABEL = 50  # letters of a label of which two stand side by side
TITLED = {"tf_layer": "{} layers", "width": "width {}", "lr": "lr {:g}", "predict": "predicts {}"}  # of settings


class Run(NamedTuple):
    """The last run of a log."""

    name: str
    records: list[dict[str, Any]]  # each step once, in order
    start: dict[str, Any]  # its settings; empty in a log that has none
    guessing: tuple[str, float] | None  # by the frequencies of what, and the loss in nats


class Line(NamedTuple):
    """Values by step."""

    steps: np.ndarray  # (n,) int64, ascending
    values: np.ndarray  # (n,) float64


def main() -> None:
    """Read, draw, save."""
    flags = parser(__doc__)
    flags.add_argument("logs", nargs="+", metavar="FILE.jsonl", help="what pre_train.py wrote as --log_file")
    flags.add_argument("--output", default="figures/pre_train.png", metavar="FILE.png", help="the plot")
    flags.add_argument("--smooth", type=positive_int, default=10, help="reports averaged for the bold line")
    flags.add_argument("--log_x", action="store_true", help="steps on a logarithmic axis")
    flags.add_argument("--band", action="store_true", help="runs that differ by the seed only as a mean in a band")
    flags.add_argument("--title", help="of the plot; by default the settings that all runs share")
    args = flags.parse_args()
    runs = named_apart([read_run(path) for path in args.logs], args.logs)
    bands = by_settings(runs) if args.band else [[one] for one in runs]

    figure, axes = figure_for(args.output, figsize=(8, 4.5))
    for band in bands:
        name = "" if len(bands) == 1 else f"{legend(band_name(band, bands))}: "
        if len(band) > 1:
            draw_band(axes, band, name, args.smooth)
        else:
            draw(axes, band[0].records, name, args.smooth)
    draw_guessing(axes, runs)
    axes.set(xlabel="step", ylabel="loss (nats per target token)", xscale="log" if args.log_x else "linear")
    axes.set_title(title_of(runs) if args.title is None else args.title, parse_math=False)
    axes.grid(alpha=0.3)
    longest = max(len(label) for label in axes.get_legend_handles_labels()[1])
    figure.legend(loc="outside lower center", ncols=1 if longest > LABEL else 2, fontsize="small")
    save_figure(figure, args.output)


def read_run(path: str | Path) -> Run:
    """Read the last run in a log; InputError for a record without a step, or no loss that could be drawn."""
    records: list[dict[str, Any]] = []
    start: dict[str, Any] = {}
    guessing = None
    for line, record in read_jsonl(path, REMEDY):
        if "step" not in record:
            raise InputError(f"{path}, line {line}: a record without a step. {REMEDY}")
        for keys, fits, kind in FIELDS:
            for key in keys:
                if not fits(record.get(key, 0)):
                    found = shown(record[key])
                    raise InputError(f"{path}, line {line}: {key} is {found}, expected {kind}. {REMEDY}")
        if "start" in record:  # a run begins, or goes on from this step
            records = [earlier for earlier in records if 0 < record["step"] >= earlier["step"]]
            start = record["start"] if isinstance(record["start"], dict) else {}
            if "guessing_loss" in record:
                guessing = (str(record.get("guessing_by", "frequencies")), record["guessing_loss"])
        else:
            records.append(record)
    if not any("loss" in record for record in records):
        raise InputError(f"{path} has no training loss. {REMEDY}")
    if not any(record["step"] and is_finite(record.get("loss")) for record in records):
        raise InputError(f"{path} has no finite training loss after step 0: there is nothing to draw. Leave it out.")
    return Run(Path(path).stem, records, start, guessing)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a float holds, NaN and infinity included, and no yes or no."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


def is_finite(value: Any) -> bool:
    """Whether it is neither NaN nor infinity, too."""
    return is_number(value) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether a value of JSON is a whole number of 0 or more."""
    return is_number(value) and 0 <= value <= MOST and value == int(value)


FIELDS = (  # of a record: what they must be
    (("step", "tokens"), is_count, "a whole number from 0 to 2^53"),
    (("loss", "eval_loss"), is_number, "a number"),
    (("guessing_loss",), is_finite, "a finite number"),
)


# Runs that belong together


def named_apart(runs: list[Run], paths: Sequence[str]) -> list[Run]:
    """The runs under the paths of their logs, where two logs have the same name."""
    if len({one.name for one in runs}) == len(runs):
        return runs
    return [one._replace(name=str(Path(path).with_suffix(""))) for one, path in zip(runs, paths, strict=True)]


def by_settings(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that share all settings but the seed and paths in one list; InputError where two have the same seed.

    A run whose log does not have its settings is in a list of its own.
    """
    bands: dict[str, list[Run]] = {}
    for number, one in enumerate(runs):
        shared = sorted(shared_settings(one.start).items())
        band = bands.setdefault(repr(shared) if one.start else str(number), [])
        for other in band:
            if other.start.get("seed") == one.start.get("seed"):
                paths = next((name for name in PATHS[:2] if other.start.get(name) != one.start.get(name)), None)
                differ = paths and f", but {paths} {shown(other.start.get(paths))} and {shown(one.start.get(paths))}"
                seed = shown(one.start.get("seed"))
                raise InputError(
                    f"--band: {other.name} and {one.name} have the same settings and seed {seed}{differ or ''}. Give "
                    "one log for each seed, and draw other data in a plot of its own."
                )
        band.append(one)
    return list(bands.values())


def band_name(band: Sequence[Run], bands: Sequence[Sequence[Run]]) -> str:
    """What tells a band from the others: the settings in which they differ, or the name of its first log."""
    if len(band) == 1:
        return band[0].name
    names = shared_settings(band[0].start)
    differing = [name for name in names if any(other[0].start.get(name) != band[0].start[name] for other in bands)]
    return ", ".join(f"{name} {band[0].start[name]}" for name in differing[:3]) or band[0].name


def legend(name: str) -> str:
    """A name as a legend shows it, which would leave out what begins with an underscore."""
    return plain(f" {name}" if name.startswith("_") else name)


def title_of(runs: Sequence[Run]) -> str:
    """The settings that all runs share, behind the name of the only one."""
    name = runs[0].name if len(runs) == 1 else "Pre-training"
    said = []
    for key, text in TITLED.items():
        value = runs[0].start.get(key)
        known = isinstance(value, str) if key == "predict" else is_finite(value)
        if known and all(one.start.get(key) == value for one in runs):
            said.append(text.format(value))
    return f"{name}: {', '.join(said)}" if said else f"{name}: training and evaluation loss"


# Drawing


def draw(axes: Any, records: list[dict[str, Any]], name: str, smooth: int) -> None:
    """Draw the training loss, as reported and averaged, and the evaluation loss, its lowest value marked."""
    reported, weights = reports(records)
    (line,) = axes.plot(*reported, alpha=0.25, linewidth=0.8, marker=dot(reported), markersize=3)
    if len(weights) >= smooth > 1:
        mean = averaged(reported, weights, smooth)
        axes.plot(*mean, color=line.get_color(), label=f"{name}training, mean of {smooth} reports")
    else:
        line.set(label=f"{name}training", alpha=1)
    steps, losses = series(records, "eval_loss")
    if len(losses):
        (line,) = axes.plot(steps, losses, marker="o", markersize=3, label=f"{name}evaluation")
        best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
        if np.isfinite(losses[best]):
            axes.plot(steps[best], losses[best], marker="*", markersize=12, color=line.get_color())
            axes.annotate(f"{losses[best]:.3f}", (steps[best], losses[best]), xytext=(0, 8), textcoords="offset points")


def draw_band(axes: Any, band: Sequence[Run], name: str, smooth: int) -> None:
    """Draw the averaged training loss of several seeds, and their evaluation loss, each as a mean in a band.

    Evaluations are of those seeds that have some; InputError where seeds share no step.
    """
    lines = [reports(one.records) for one in band]
    if min(len(weights) for _, weights in lines) >= smooth > 1:
        lines, kind = (
            [averaged(line, weights, smooth) for line, weights in lines],
            f"training, mean of {smooth} reports",
        )
    else:
        lines, kind = [line for line, _ in lines], "training"
    evaluations = [line for one in band if len((line := series(one.records, "eval_loss")).steps)]
    for found, kind_of_loss in ((lines, kind), (evaluations, "evaluation")):
        if not found:
            continue
        steps, values = together(found)
        if not len(steps):
            names, what = ", ".join(one.name for one in band), kind_of_loss.partition(",")[0]
            raise InputError(f"--band: {names} share no step of {what}. Draw them without --band.")
        counted = f"{len(found)} of {len(band)}" if len(found) < len(band) else f"{len(band)}"
        label = f"{name}{kind_of_loss} ({counted} seeds: mean, lowest to highest)"
        mean = Line(steps, values.mean(axis=0))
        marker = "o" if found is evaluations else dot(mean)
        (line,) = axes.plot(*mean, marker=marker, markersize=3, label=label)
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2)


def dot(line: Line) -> str | None:
    """The marker of a training loss: a dot where no two finite values stand side by side, so that no line is seen."""
    finite = np.isfinite(line.values)
    return None if (finite[1:] & finite[:-1]).any() else "o"


def draw_guessing(axes: Any, runs: Sequence[Run]) -> None:
    """Draw the loss of guessing, once for all runs that have the same to two decimals."""
    drawn: dict[tuple[str, str], float] = {}
    for one in runs:
        if one.guessing:
            drawn.setdefault((one.guessing[0], f"{one.guessing[1]:.2f}"), one.guessing[1])
    for (by, rounded), loss in drawn.items():
        axes.axhline(loss, color="gray", linestyle="--", linewidth=1, label=f"guessing by {plain(by)}: {rounded}")


# Figures


def series(records: Iterable[dict[str, Any]], key: str) -> Line:
    """The values of the records that have `key`, by step."""
    having = [record for record in records if key in record]
    return Line(np.array([record["step"] for record in having]), np.array([record[key] for record in having], float))


def reports(records: Iterable[dict[str, Any]]) -> tuple[Line, np.ndarray]:
    """Training loss by step, and what each value covers (n,) float64: target tokens, or steps in older logs.

    A report that covers fewer steps than the usual one (median) is joined to the next, and the last one to the one
    before, by their weighted mean: the loss of a few steps jumps, and would stand out for nothing else.
    """
    having = [record for record in records if "loss" in record]
    steps = np.array([record["step"] for record in having])
    covered = np.diff(steps, prepend=0)
    if len(steps) > 1:  # a log may begin after step 0
        covered[0] = min(covered[0], covered[1])
    losses = np.array([record["loss"] for record in having], dtype=float)
    weights = np.array([record.get("tokens", 0) for record in having], dtype=float)
    weights = weights if weights.all() else np.maximum(covered, 1).astype(float)

    usual, ends, since = np.median(covered), [], 0
    for place, count in enumerate(covered):
        since += count
        if since >= usual:
            ends.append(place)
            since = 0
    ends[-1:] = [len(steps) - 1]
    starts = np.array([0, *(end + 1 for end in ends[:-1])])
    weight = np.add.reduceat(weights, starts)
    return Line(steps[ends], np.add.reduceat(weights * losses, starts) / weight), weight


def averaged(line: Line, weights: np.ndarray, count: int) -> Line:
    """The weighted mean of each `count` values in a row, at the step of the last of them."""
    window = np.ones(count)
    sums = np.convolve(line.values * weights, window, mode="valid")
    return Line(line.steps[count - 1 :], sums / np.convolve(weights, window, mode="valid"))


def together(lines: Sequence[Line]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) of the first line that all lines span, and the values (lines, n) there, interpolated if need be."""
    first, last = max(line.steps[0] for line in lines), min(line.steps[-1] for line in lines)
    steps = lines[0].steps[(lines[0].steps >= first) & (lines[0].steps <= last)]
    return steps, np.array([np.interp(steps, *line) for line in lines])


if __name__ == "__main__":
    run(main)
