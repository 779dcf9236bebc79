"""Draw training and evaluation loss from the logs of pre-training.

    python -m utils.plot_logs logs/pre_train.jsonl --output figures/pre_train.png
    python -m utils.plot_logs logs/small.jsonl logs/large.jsonl --log_x

Of a run that was resumed, the steps that were taken twice are drawn as they went the second time; of several runs in
one file, only the last is drawn.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

from pathlib import Path
from typing import Any

import numpy as np

from utils.cli import parser, positive_int, run
from utils.errors import InputError
from utils.figures import figure_for, save_figure
from utils.files import read_jsonl

REMEDY = "Give a file that pre_train.py wrote (--log_file)."


def main() -> None:
    """Read, draw, save."""
    flags = parser(__doc__)
    flags.add_argument("logs", nargs="+", metavar="FILE.jsonl", help="what pre_train.py wrote as --log_file")
    flags.add_argument("--output", default="figures/pre_train.png", metavar="FILE.png", help="the plot")
    flags.add_argument("--smooth", type=positive_int, default=10, help="reports averaged for the bold line")
    flags.add_argument("--log_x", action="store_true", help="steps on a logarithmic axis")
    args = flags.parse_args()
    runs = {path: read_run(path) for path in args.logs}

    figure, axes = figure_for(args.output, figsize=(8, 4.5))
    for path, records in runs.items():
        draw(axes, records, "" if len(runs) == 1 else f"{Path(path).stem}: ", args.smooth)
    axes.set(xlabel="step", ylabel="loss (nats per target token)", xscale="log" if args.log_x else "linear")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, args.output)


def read_run(path: str) -> list[dict[str, Any]]:
    """Read the records of the last run in a log, each step once, in order; InputError if there is no step or loss."""
    records: list[dict[str, Any]] = []
    for line, record in read_jsonl(path, REMEDY):
        if "step" not in record:
            raise InputError(f"{path}, line {line}: a record without a step. {REMEDY}")
        if "start" in record:  # a run begins, or goes on from this step
            records = [earlier for earlier in records if earlier["step"] <= record["step"]]
            if not record["step"]:
                records = []
        else:
            records.append(record)
    if not any("loss" in record for record in records):
        raise InputError(f"{path} has no training loss. {REMEDY}")
    return records


def draw(axes: Any, records: list[dict[str, Any]], name: str, smooth: int) -> None:
    """Draw the training loss, as reported and averaged, and the evaluation loss, its lowest value marked."""
    steps, losses = series(records, "loss")
    (line,) = axes.plot(steps, losses, alpha=0.25, linewidth=0.8)
    if len(losses) >= smooth:
        mean = np.convolve(losses, np.full(smooth, 1 / smooth), mode="valid")
        axes.plot(steps[smooth - 1 :], mean, color=line.get_color(), label=f"{name}training, mean of {smooth} reports")
    else:
        line.set(label=f"{name}training", alpha=1)
    steps, losses = series(records, "eval_loss")
    if len(losses):
        (line,) = axes.plot(steps, losses, marker="o", markersize=3, label=f"{name}evaluation")
        best = int(np.argmin(losses))
        axes.plot(steps[best], losses[best], marker="*", markersize=12, color=line.get_color())
        axes.annotate(f"{losses[best]:.3f}", (steps[best], losses[best]), xytext=(0, 8), textcoords="offset points")


def series(records: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) int64 and values (n,) float64 of the records that have `key`."""
    having = [record for record in records if key in record]
    return np.array([record["step"] for record in having]), np.array([record[key] for record in having], dtype=float)


if __name__ == "__main__":
    run(main)
