"""Draw which checkpoint does how well on which data set: a matrix of what it was trained on and what it was tested on.

    python predict.py --dataset baby --ckpt_path ckpt/a.pt --results results.jsonl
    python -m utils.plots.cross_domain results.jsonl --metric ndcg@5 --output figures/cross_domain.png
    python -m utils.plots.cross_domain results.jsonl --label baby=ckpt/a.pt yelp=ckpt/b.pt

Rows are checkpoints. One is called as --label says, or like the data set that its data_path names (in the JSON beside
it), or else like the folder of that path. Columns are data sets, under their paths where two have the same name; a cell
in which a row meets its own data set has a frame. The same numbers are printed, and written beside the figure as .csv.
Where a result is there twice the last counts, as predict.py appends.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import csv
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.alike import EVALUATION
from utils.checkpoint import read_metadata
from utils.cli import named_file, parser, run
from utils.compare import MODEL
from utils.datasets import is_time
from utils.errors import InputError, shown
from utils.figures import figure_for, plain, save_figure
from utils.files import atomic_write, check_writable, read_jsonl
from utils.table_files import for_csv
from utils.util import print_table

REMEDY = "Give a file that predict.py wrote (--results)."
DARKEST = 0.45  # grey, from 0 to 1, of a column's best: black text can be read on it
LONG = 12  # letters of a data set's name beyond which the names are turned


class Matrix(NamedTuple):
    """A metric of C checkpoints on S data sets."""

    trained: list[str]  # (C,) labels of the checkpoints
    tested: list[str]  # (S,) names of the data sets
    values: np.ndarray  # (C, S) float64, NaN where there is no result


def main() -> None:
    """Read, arrange, print, write, draw."""
    args = parse()
    figure, axis = figure_for(args.output)
    table = Path(args.output).with_suffix(".csv")
    check_writable(table)
    results = read_results(args.results, args.method, args.group)
    metric = args.metric or last_ndcg(results[-1])
    matrix = arrange(results, metric, {str(path): name for name, path in args.label})
    title = f"{metric} of {args.method}, {args.group}"
    print(f"{title}; trained on (row), tested on (column)")
    rows = [[name, *row] for name, row in zip(matrix.trained, matrix.values.tolist(), strict=True)]
    print_table(["", *matrix.tested], [["-" if cell != cell else cell for cell in row] for row in rows])
    draw(axis, matrix)
    figure.suptitle(plain(title), fontsize=11)
    with atomic_write(table, "w") as file:
        lines = [["" if cell != cell else cell for cell in row] for row in rows]
        table_lines = [["trained on", *matrix.tested], *lines]
        csv.writer(file, lineterminator="\n").writerows(map(for_csv, line) for line in table_lines)
    print(f"wrote {table}")
    save_figure(figure, args.output)


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("results", nargs="+", metavar="FILE.jsonl", help="what predict.py wrote as --results")
    flags.add_argument("--metric", help="such as hit@5; by default NDCG at the largest k of the last result")
    flags.add_argument("--group", default="all users", help="group of users")
    flags.add_argument("--method", default=MODEL, help="row of predict.py's tables")
    labels = {"type": named_file, "nargs": "+", "default": [], "metavar": "NAME=CHECKPOINT"}
    flags.add_argument("--label", **labels, help="what checkpoints are called, by the path that the results name")
    flags.add_argument("--output", default="figures/cross_domain.png", metavar="FILE.png", help="the figure")
    return flags.parse_args()


def read_results(paths: list[str], method: str, group: str) -> list[dict[str, Any]]:
    """The results of a method for a group of users, in the order of the files.

    InputError for a line that is no result of predict.py, no such result, or results of different settings.
    """
    found, others, settings = [], set(), {}
    for path in paths:
        for line, result in read_jsonl(path, REMEDY):
            names = [result.get(name) for name in ("dataset", "ckpt_path", "method", "group")]
            if not all(isinstance(name, str) for name in names):
                raise InputError(f"{path}, line {line}: found {shown(result)}, no result of predict.py. {REMEDY}")
            others.add(f"{names[2]}, {names[3]}")
            if names[2:] == [method, group]:
                found.append(result)
                settings.setdefault(str({name: result.get(name) for name in EVALUATION}), f"{path}, line {line}")
    if not found:
        there = "; ".join(sorted(others)[:6]) or "none"
        raise InputError(
            f"there is no result of {method}, {group}. Name another --method or --group; there are: {there}."
        )
    if len(settings) > 1:
        (one, here), (other, there) = list(settings.items())[:2]
        raise InputError(
            f"{here} has the setting {one}, {there} has {other}: these cannot be compared. Give files of one setting."
        )
    return found


def last_ndcg(result: dict[str, Any]) -> str:
    """The NDCG of a result at its largest k; InputError where it has none.

    >>> last_ndcg({"ndcg@1": 0.1, "ndcg@10": 0.2, "ndcg@5": 0.2, "hit@20": 0.3})
    'ndcg@10'
    """
    ks = [int(name[5:]) for name in result if re.fullmatch("ndcg@[0-9]{1,9}", name)]
    if not ks:
        raise InputError(f"a result has no NDCG: {shown(result)}. {REMEDY}")
    return f"ndcg@{max(ks)}"


def arrange(results: list[dict[str, Any]], metric: str, labels: dict[str, str]) -> Matrix:
    """Put a metric into a matrix; `labels` are those of some checkpoints by path.

    Data sets stand in the order of the results, and checkpoints that are called like one in the same order, first.
    InputError if results lack the metric, a label is of no checkpoint, or two checkpoints have one label.
    """
    names = data_sets([result["dataset"] for result in results])
    tested = list(dict.fromkeys(names.values()))
    paths = list(dict.fromkeys(result["ckpt_path"] for result in results))
    for path, name in labels.items():
        if path not in map(plain_path, paths):
            raise InputError(f"--label {name}={path}: the results are of {', '.join(paths[:6])}. Name one of these.")
    called = {path: labels.get(plain_path(path)) or label_of(path, tested) for path in paths}
    twice = [path for path in paths if list(called.values()).count(called[path]) > 1]
    if twice:
        raise InputError(
            f"the checkpoints {' and '.join(twice[:2])} would both be called {called[twice[0]]}. Give --label NAME="
            f"{twice[0]}, or only one of them."
        )
    trained = sorted(called.values(), key=lambda name: tested.index(name) if name in tested else len(tested))
    values = np.full((len(trained), len(tested)), np.nan)
    for result in results:
        value = result.get(metric)
        if value is not None and not is_time(value) or metric not in result:
            numbers = [name for name, other in result.items() if is_time(other)]
            raise InputError(f"--metric {metric}: a result has {shown(value)} there. There are: {', '.join(numbers)}.")
        place = trained.index(called[result["ckpt_path"]]), tested.index(names[result["dataset"]])
        values[place] = math.nan if value is None else value
    return Matrix(trained, tested, values)


def data_sets(paths: list[str]) -> dict[str, str]:
    """What the data sets of --dataset are called: like their folders, or by their paths where two are called the same.

    >>> data_sets(["pets", "data/test/pets", "test/toys", "mine/toys"])
    {'pets': 'pets', 'data/test/pets': 'pets', 'test/toys': 'data/test/toys', 'mine/toys': 'mine/toys'}
    """
    whole = {path: path_of(path) for path in paths}
    names = [path.name for path in set(whole.values())]
    return {name: path.name if names.count(path.name) == 1 else str(path) for name, path in whole.items()}


def path_of(dataset: str) -> Path:
    """The folder that --dataset names: NAME and test/NAME are under data/test."""
    path = Path(dataset)
    return Path("data/test", path.name) if len(path.parts) == 1 or path.parts[:-1] == ("test",) else path


def plain_path(path: str) -> str:
    """A path without a ./ before it, as --label has it."""
    return str(Path(path))


def label_of(path: str, tested: list[str]) -> str:
    """What a checkpoint is called: the data set of its data_path, or that folder, or its own path if none is known.

    A folder such as pets_log, which make_pre_train.py made of the data set pets, stands for this.
    """
    training = read_metadata(path).get("training")
    data_path = training.get("data_path") if isinstance(training, dict) else None
    if not isinstance(data_path, str):
        return path
    folders = [part for part in Path(data_path).parts[::-1] if part != "whole"]
    named = (name for part in folders for name in tested if part == name or part.startswith(f"{name}_"))
    return next(named, folders[0] if folders else path)


def draw(axis: Any, matrix: Matrix) -> None:
    """The matrix in greys, each column to its own best, with the numbers in it and frames on the diagonal."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    trained, tested, values = matrix
    axis.figure.set_size_inches(2.5 + 0.08 * max(map(len, trained)) + 1.2 * len(tested), 2.2 + 0.6 * len(trained))
    best = np.where(np.isnan(values), 0, values).max(axis=0)
    greys = ListedColormap([str(1 - DARKEST * level / 255) for level in range(256)])
    picture = axis.imshow(values / np.where(best > 0, best, 1), cmap=greys, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        own = trained[row] == tested[column]
        text = "-" if np.isnan(value) else f"{value:.4f}"
        axis.text(column, row, text, ha="center", va="center", weight="bold" if own else "normal")
        if own:
            axis.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, linewidth=2.5))
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, tested)) > LONG else {}
    axis.set_xticks(range(len(tested)), [*map(plain, tested)], **turned)
    axis.set_yticks(range(len(trained)), [*map(plain, trained)])
    axis.set(xlabel="tested on (framed: trained on its log)", ylabel="trained on")
    axis.figure.colorbar(picture, label="part of the column's best")


if __name__ == "__main__":
    run(main)
