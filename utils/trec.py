"""Write lists of recommendations as TREC files, which trec_eval, pytrec_eval, ranx and ir-measures judge.

    python -m utils.trec lists.jsonl --output trec
    python -m utils.trec sasrec.jsonl --output trec

Reads what predict.py --output writes and --compare takes: a line for each user, with items best first. Writes

    DIR/NAME.run.txt     USER Q0 ITEM RANK SCORE NAME       each item of each list, from rank 1 on
    DIR/NAME.qrels.txt   USER 0 TARGET 1                    each user's target, where the lines have targets

where NAME is the file's name without its ending. Items and targets are the numbers of item_ids.jsonl, so that the runs
of several recommenders can be judged by the qrels of one. White space in the names of users is written as %20 and so
on, and the percent sign as %25, because TREC's files have columns between white space.

TREC's programs do not read the rank: they sort by the score, and equal scores by the item's name. So that a list keeps
its order, a score that is not below the one before it, in single precision as trec_eval reads it, becomes the next
number below. Where a list has no scores, or one that is no number, its scores are -1, -2, -3, …

predict.py counts a target that ties with the mean over all orders of the tie; these programs see one order, that of
the list. Its metrics are the same where no target ties. How many do is printed.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from utils.cli import parser, run
from utils.datasets import is_id, is_list
from utils.errors import InputError, shown
from utils.files import atomic_write, read_jsonl, staged_directory

REMEDY = "It must have the form that predict.py --output writes."


class Ranking(NamedTuple):
    """The list of a user."""

    user: str  # without white space
    items: list[int]  # best first, each once
    scores: list[float] | None  # of the items; None where the file has none
    target: int | None
    tied: bool  # whether the target ties, by its score or the rank that predict.py gave it


def main() -> None:
    """Read the lists, write the run and, where there are targets, the qrels, and print what is to be known of them."""
    flags = parser(__doc__)
    flags.add_argument("lists", metavar="FILE.jsonl", help="lists of predict.py --output, or of the same form")
    flags.add_argument("--output", required=True, metavar="DIR", help="directory to write to")
    args = flags.parse_args()
    name = no_white_space(Path(args.lists).name.removesuffix(".gz").removesuffix(".jsonl"))
    rankings = list(read_rankings(Path(args.lists)))
    run_name, qrels_name = f"{name}.run.txt", f"{name}.qrels.txt"
    targets = [ranking for ranking in rankings if ranking.target is not None]
    with staged_directory(args.output, (run_name, qrels_name)) as staging:
        write(staging / run_name, run_lines(rankings, name))
        if targets:
            write(staging / qrels_name, (f"{ranking.user} 0 {ranking.target} 1" for ranking in targets))
    print(f"{Path(args.output) / run_name}: {len(rankings)} users")
    if targets:
        print(f"{Path(args.output) / qrels_name}: {len(targets)} targets")
    empty, tied = sum(not ranking.items for ranking in rankings), sum(ranking.tied for ranking in rankings)
    if empty:
        print(f"  {empty} users have an empty list, and no line in the run: trec_eval counts them only with -c")
    if tied:
        print(f"  the targets of {tied} users tie: predict.py takes the mean over all orders, TREC the list's")


def read_rankings(path: Path) -> Iterator[Ranking]:
    """Read a file of lists; of an item that is in a list twice the better place is kept.

    Raises:
        InputError: a damaged file, one without lines, a line of another form, or a user who is there twice.
    """
    known = set()
    for line, record in read_jsonl(path, REMEDY):
        ranking = read_ranking(record, f"{path}, line {line}")
        if ranking.user in known:
            raise InputError(f"{path}, line {line}: user {shown(record['user'])} is there twice. {REMEDY}")
        known.add(ranking.user)
        yield ranking
    if not known:
        raise InputError(f"{path} has no list. {REMEDY}")


def read_ranking(record: dict[str, Any], where: str) -> Ranking:
    """The list of one line; InputError, which begins with `where`, for a line of another form."""
    user, items, scores, target = (record.get(name) for name in ("user", "items", "scores", "target"))
    if not isinstance(user, (int, str)) or user == "" or not is_list(items) or not all(map(is_id, items)):
        raise InputError(f"{where}: found {shown(record)}, expected user and items. {REMEDY}")
    if scores is not None and (not is_list(scores) or len(scores) != len(items)):
        raise InputError(
            f"{where}: found scores {shown(scores)}, expected one for each of {len(items)} items. {REMEDY}"
        )
    if target is not None and not is_id(target):
        raise InputError(f"{where}: found target {shown(target)}, expected the number of an item. {REMEDY}")
    first = {item: place for place, item in reversed(list(enumerate(items)))}
    kept = sorted(first, key=first.get)
    scores = None if scores is None else [scores[first[item]] for item in kept]
    rank, place = record.get("rank"), kept.index(target) if target in first else None
    tied = rank is not None and (place is None or rank != place + 1)
    tied |= None not in (scores, place) and scores.count(scores[place]) > 1
    return Ranking(no_white_space(str(user)), kept, scores, target, tied)


def no_white_space(name: str) -> str:
    """The name with white space, and the percent sign itself, in percent-encoding.

    >>> no_white_space("anna 100%")
    'anna%20100%25'
    """
    return re.sub(r"[\s%]", lambda found: quote(found[0], safe=""), name)


def descending(scores: list[Any] | None, count: int) -> list[float]:
    """Scores of `count` items, best first, that fall strictly in single precision, and differ only where they must.

    >>> descending([0.5, 0.5, -2.0], 3)
    [0.5, 0.4999999701976776, -2.0]
    >>> descending([0.5, None], 2)
    [-1.0, -2.0]
    """
    if scores is None or not all(map(is_single, scores)):
        return [-float(rank) for rank in range(1, count + 1)]
    falling = np.array(scores, dtype=np.float32)
    for place in range(1, count):
        falling[place] = min(falling[place], np.nextafter(falling[place - 1], np.float32(-np.inf)))
    return falling.tolist()


def is_single(value: Any) -> bool:
    """Whether a value is a number that single precision holds, with some to spare."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) < 1e38


def run_lines(rankings: Iterable[Ranking], name: str) -> Iterator[str]:
    """Yield the lines of a run called `name`."""
    for ranking in rankings:
        scores = descending(ranking.scores, len(ranking.items))
        for rank, (item, score) in enumerate(zip(ranking.items, scores, strict=True), start=1):
            yield f"{ranking.user} Q0 {item} {rank} {score!r} {name}"


def write(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text."""
    with atomic_write(path, "w") as file:
        file.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    run(main)
