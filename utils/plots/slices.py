"""Draw the results of predict.py --per_user by length of the history, and by popularity of the target.

    python predict.py --dataset steam --ckpt_path ckpt/layer_3_epoch_4.pt --per_user users.npz
    python -m utils.plots.slices users.npz --dataset steam --output figures/slices.png
    python -m utils.plots.slices users.npz --dataset steam --group "target is new" --methods RecGPT popularity

A target's popularity is how often train.pkl has it. The bounds of the bins are quantiles, so that they have about as
many users each, but equal numbers stay together and 0 is a bin of its own. Intervals are those of predict.py (95 %,
users drawn anew); those of fewer than 30 users are printed and not drawn. Give --cold and --drop_short as predict.py
had them.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.cli import SWITCH, parser, positive_int, run
from utils.compare import REPEATED, intervals
from utils.datasets import TestSet, dataset_folder, load_test
from utils.errors import InputError, reason
from utils.figures import figure_for, marks, plain, save_figure
from utils.files import require_file
from utils.report import FEWEST
from utils.scores import repeats
from utils.util import print_table

EVERYONE = "all users"
GAINS, GROUP = "ndcg: ", "group: "  # what the names of arrays begin with
REMEDY = "Give a file that predict.py wrote (--per_user)."


class Slices(NamedTuple):
    """Users in bins."""

    what: str  # label of the axis
    names: list[str]  # of the bins
    bins: np.ndarray  # (U,) int64, each user's bin


def main() -> None:
    """Read, cut into bins, print, draw."""
    args = parse()
    figure, axes = figure_for(args.output, rows=2, figsize=(11, 8))
    gains, groups, users = load_gains(args.per_user)
    gains = chosen(gains, args.methods, "--methods")
    group = args.group or (EVERYONE if EVERYONE in groups else next(iter(groups)))
    members = chosen(groups, [group], "--group")[group]
    test = load_test(dataset_folder(args.dataset), args.cold, args.drop_short)
    check_same_users(groups, users, test, args)
    if not members.any():
        raise InputError(f"{args.per_user}: the group {group!r} is empty. Name another --group.")
    selected = {name: values[members] for name, values in gains.items()}
    title = f"{args.dataset}{', cold start' if args.cold else ''}, {Path(args.per_user).name}, {group}"
    drawn = slices_of(test, members, args.bins)
    for axis, cut in zip(axes, drawn, strict=False):
        found = measure(selected, cut)
        show(title, cut, found)
        draw(axis, cut, found)
    for axis in axes[len(drawn) :]:
        axis.remove()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(plain(f"{title}: {members.sum():,} users"))
    save_figure(figure, args.output)


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("per_user", metavar="FILE.npz", help="what predict.py wrote as --per_user")
    flags.add_argument("--dataset", required=True, help="data/test/NAME, or a data set directory: that of FILE.npz")
    flags.add_argument("--cold", **SWITCH, help="it is about the users of cold_test.pkl")
    flags.add_argument("--drop_short", action="store_true", help="it leaves out users with fewer than two items")
    flags.add_argument("--group", help='group of users; by default "all users", or else the first in the file')
    flags.add_argument("--methods", nargs="+", metavar="NAME", help="methods, by default all in the file")
    flags.add_argument("--bins", type=positive_int, default=5, help="bins, at most, beside that of 0")
    flags.add_argument("--output", default="figures/slices.png", metavar="FILE.png", help="the figure")
    return flags.parse_args()


def load_gains(path: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray | None]:
    """Read NDCG (U,) float64 by method, members (U,) bool by group, and users (U,), None in an older file.

    InputError for a damaged or another file.
    """
    try:
        with np.load(require_file(path, REMEDY), allow_pickle=False) as saved:
            gains, groups = (
                {name.removeprefix(kind): saved[name] for name in saved.files if name.startswith(kind)}
                for kind in (GAINS, GROUP)
            )
            users = saved["users"] if "users" in saved.files else None
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}). {REMEDY}") from error
    if not gains or not groups:
        raise InputError(f"{path} has no arrays {GAINS}NAME and {GROUP}NAME. {REMEDY}")
    shapes = {array.shape for array in (*gains.values(), *groups.values())}
    kinds = {array.dtype.kind for array in gains.values()}, {array.dtype.kind for array in groups.values()}
    if len(shapes) > 1 or len(shapes.pop()) != 1 or kinds != ({"f"}, {"b"}):
        raise InputError(f"{path}: its arrays are not one number, and one yes or no, for each user. {REMEDY}")
    if not all(((array >= 0) & (array <= 1)).all() for array in gains.values()):
        raise InputError(f"{path} holds NDCG that is NaN, or not from 0 to 1. {REMEDY}")
    return gains, groups, users


def check_same_users(
    groups: dict[str, np.ndarray], users: np.ndarray | None, test: TestSet, args: argparse.Namespace
) -> None:
    """InputError unless the users (U,) of a file, and the groups, masks (U,) bool, are those of the data set in order.

    An older file does not name its users (None): then their number and what they have repeated must be the same.
    """
    remedy = "Name the data set that it was made from, with --cold and --drop_short as predict.py had them."
    count, found = len(next(iter(groups.values()))), len(test.sequences)
    if count != found:
        raise InputError(f"{args.per_user} is about {count} users, {args.dataset} has {found}. {remedy}")
    if users is not None and users.astype(str).tolist() != test.sequences.users.astype(str).tolist():
        raise InputError(f"{args.per_user} is about other users than {args.dataset}, or in another order. {remedy}")
    again, new = REPEATED
    repeated = repeats(*test.sequences.split_targets())
    for name, members in ((again, repeated), (new, ~repeated)):
        if name in groups and (groups[name] != members).any():
            raise InputError(f"{args.per_user} is about other users than {args.dataset}: {name!r} differs. {remedy}")


def chosen(arrays: dict[str, np.ndarray], names: list[str] | None, flag: str) -> dict[str, np.ndarray]:
    """Those of some names, or all; InputError for a name that is not there."""
    for name in names or ():
        if name not in arrays:
            raise InputError(f"{flag} {name}: there is none of that name. There are: {', '.join(arrays)}.")
    return {name: arrays[name] for name in names or arrays}


def slices_of(test: TestSet, members: np.ndarray, bins: int) -> list[Slices]:
    """The users of a mask (U,) bool by history and, where there is train.pkl, by target."""
    histories, targets = test.sequences.split_targets()
    found = [Slices("items of the history", *quantile_bins(histories.lengths[members], bins))]
    if test.log is None:
        print("popularity of the target is left out: the data set has no train.pkl")
        return found
    popularity = np.bincount(test.log.items, minlength=len(test.embeddings))[targets[members]]
    return [*found, Slices("times that the target occurs in train.pkl", *quantile_bins(popularity, bins))]


def quantile_bins(values: np.ndarray, bins: int) -> tuple[list[str], np.ndarray]:
    """Cut whole numbers (U,) of 0 or more at quantiles; returns names of the bins and each number's bin, (U,) int64.

    >>> quantile_bins(np.array([0, 1, 1, 2, 3, 9]), 2)
    (['0', '1', '2-9'], array([0, 1, 1, 2, 2, 2]))
    """
    positive = values[values > 0]
    inner = np.quantile(positive, np.arange(bins) / bins, method="higher") if len(positive) else []
    starts = np.unique(np.concatenate([values[values == 0][:1], inner])).astype(np.int64)
    found = np.searchsorted(starts, values, side="right") - 1
    ranges = [(values[found == number].min(), values[found == number].max()) for number in range(len(starts))]
    return [f"{low}" if low == high else f"{low}-{high}" for low, high in ranges], found


def measure(gains: dict[str, np.ndarray], cut: Slices) -> dict[str, np.ndarray]:
    """Mean NDCG of each method in every bin, with the bounds of its interval: (bins, 3) float64."""
    rows = np.array([*gains.values()])
    keys = ("difference", "low", "high")
    cells = [intervals(rows[:, cut.bins == number]) for number in range(len(cut.names))]
    return {
        name: np.array([[cell[method][key] for key in keys] for cell in cells]) for method, name in enumerate(gains)
    }


def show(title: str, cut: Slices, found: dict[str, np.ndarray]) -> None:
    """Print a table with a row for each method and a column for each bin."""
    print(f"\n{title}; NDCG at the largest --topk, by {cut.what}, with 95 % intervals")
    rows = [[name, *("{:.4f} [{:.4f}, {:.4f}]".format(*cell) for cell in cells)] for name, cells in found.items()]
    print_table(["", *cut.names], [["users", *np.bincount(cut.bins).tolist()], *rows])


def draw(axis: Any, cut: Slices, found: dict[str, np.ndarray]) -> None:
    """The methods side by side in every bin, each a mark with its interval."""
    width, users = 0.8 / len(found), np.bincount(cut.bins)
    for number, ((name, cells), option) in enumerate(zip(found.items(), marks(len(found)), strict=True)):
        places = np.arange(len(cells)) - 0.4 + width * (number + 0.5)
        bounds = np.where(users < FEWEST, 0, np.abs(cells[:, 1:].T - cells[:, 0]))
        option |= {"linestyle": "", "markersize": 5, "capsize": 2}
        axis.errorbar(places, cells[:, 0], bounds, label=plain(name), **option)
    for number in range(1, len(cut.names), 2):
        axis.axvspan(number - 0.5, number + 0.5, color="0.93", zorder=0)
    ticks = [f"{name}\n{count:,} users" for name, count in zip(cut.names, users, strict=True)]
    axis.set_xticks(range(len(ticks)), ticks)
    axis.set(xlabel=cut.what, ylabel="mean NDCG at the largest --topk", xlim=(-0.5, len(ticks) - 0.5), ylim=(0, None))
    axis.grid(alpha=0.3, axis="y")


if __name__ == "__main__":
    run(main)
