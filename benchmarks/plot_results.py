"""Draw what benchmarks/real_data.py measured: bars by domain, NDCG@10 against history length and share of users.

    python benchmarks/plot_results.py data/real --compare SASRec --output docs/results.png

Bars are means over users and seeds, with 95 % intervals over users (bootstrap).
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.real_data import LEVELS, MODEL, STARTS, TEST, Run, gains, peer_gains
from utils.cli import parser, positive_float, run, seed
from utils.compare import intervals, user_groups
from utils.datasets import load_sequences
from utils.errors import InputError
from utils.figures import figure_for

COLOURS = ("tab:gray", "tab:blue", "tab:orange")  # by what a method needs
METHODS = ("nearest text", "blend (no log)", "era popularity", "transitions", "item cosine", "EASE", "blend (its log)")
METHODS += ("SASRec", "RecGPT, scratch", "RecGPT, pre-trained", "blend with RecGPT, scratch")
LINES = ("blend (no log)", "transitions", "blend (its log)", "RecGPT, scratch", "blend with RecGPT, scratch")
LENGTHS = (1, 5, 8, 13, 21, 10**9)  # items of the history, bounds of the bins


def main() -> None:
    """Read, draw, save."""
    flags = parser(__doc__)
    flags.add_argument("work", type=Path, metavar="DIR", help="--work of benchmarks/real_data.py")
    flags.add_argument("--test", nargs="+", default=TEST, metavar="DOMAIN", help="domains")
    flags.add_argument("--shares", type=positive_float, nargs="+", default=[0.01, 0.1, 1.0], help="of a domain's users")
    flags.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2], help="of training")
    flags.add_argument("--compare", nargs="*", default=[], metavar="NAME", help="lists WORK/peers/DOMAIN/NAME.jsonl")
    flags.add_argument("--output", default="docs/results.png", metavar="FILE.png", help="the plot")
    args = flags.parse_args()
    rows = 3 if len(args.shares) > 1 else 2  # of a single share there are no lines to draw
    figure, axes = figure_for(
        args.output, rows=rows, columns=len(args.test), figsize=(4.6 * len(args.test), 3.7 * rows)
    )
    for (bars, lengths, *shares), domain in zip(np.reshape(axes, (rows, -1)).T, args.test, strict=True):
        found = {share: read(args, domain, share) for share in sorted(args.shares)}
        found = {share: methods for share, methods in found.items() if methods}
        if not found:
            raise InputError(f"{args.work} has no results of {domain}. Run benchmarks/real_data.py.")
        largest = max(found)
        draw_bars(bars, f"{domain}, {largest:.0%} of its users", found[largest])
        draw_lengths(lengths, history_lengths(args.work / "sets" / domain / "test.pkl"), found[largest])
        for below in shares:
            for name in LINES:
                known = [share for share in found if name in found[share]]
                below.plot(known, [found[share][name].mean() for share in known], marker="o", label=name)
            below.set(xscale="log", xlabel="share of the domain's users", ylabel="NDCG@10")
    figure.savefig(args.output, dpi=110)
    print(f"wrote {args.output}")


def read(args: Any, domain: str, share: float) -> dict[str, np.ndarray]:
    """NDCG@10 of every user with a new target, mean over seeds, by method and start."""
    means = {}
    for start in STARTS:
        seeds = [gains(Run(args.work, domain, share, number, start).results) for number in args.seeds]
        seeds = [one for one in seeds if one]
        for name in seeds[0] if seeds else ():
            label = f"{name}, {start}" if MODEL in name else name
            means[label] = np.mean([one[name] for one in seeds], axis=0)
    if means and share == 1:
        means |= {name: peer_gains(args.work, domain, name) for name in args.compare}
    return means


def history_lengths(path: Path) -> np.ndarray:
    """Items of the history of every user with a new target."""
    histories, targets = load_sequences(path, "").split_targets()
    return histories.lengths[user_groups(histories, targets, None, exclude=True)["target is new"]]


def draw_bars(axes: Any, title: str, means: dict[str, np.ndarray]) -> None:
    """A bar for each method, by what it needs, with its interval."""
    names = [name for name in METHODS if name in means]
    found = intervals(np.array([means[name] for name in names]))
    values = np.array([[one["difference"], one["low"], one["high"]] for one in found])
    errors = np.abs(values[:, 1:].T - values[:, 0])
    axes.barh(names, values[:, 0], xerr=errors, color=[COLOURS[LEVELS.get(name, 2)] for name in names])
    axes.invert_yaxis()
    axes.set(title=title, xlabel="NDCG@10, targets new to the user")
    axes.tick_params(axis="y", labelsize=8)


def draw_lengths(axes: Any, lengths: np.ndarray, means: dict[str, np.ndarray]) -> None:
    """NDCG@10 of users whose histories have about the same length."""
    bins = np.searchsorted(LENGTHS, lengths, side="right") - 1
    ticks = [f"{low}-{high - 1}" for low, high in pairwise(LENGTHS[:-1])] + [f"{LENGTHS[-2]}+"]
    for name in [name for name in LINES if name in means]:
        axes.plot(ticks, [means[name][bins == number].mean() for number in range(len(ticks))], marker="o", label=name)
    axes.set(xlabel="items of the history", ylabel="NDCG@10")
    axes.legend(fontsize=7, framealpha=0.4)


if __name__ == "__main__":
    run(main)
