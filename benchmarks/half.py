"""How many users have the same first ten items with weights of 16 bits.

    python benchmarks/half.py my_bundle --histories data/test/my_shop/test.jsonl --users 2000

The histories are those of serving.recommend --histories, or of a test.pkl, whose last items, the targets, are cut off;
its numbers must be the ids of the bundle, as they are where the data set has no item_ids.jsonl. Users of whom the
catalog has no item do not count.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np

from benchmarks.common import machine
from serving.histories import read_histories
from serving.recommender import Recommender
from utils.cli import parser, positive_int, run
from utils.datasets import load_sequences
from utils.errors import InputError


def main() -> None:
    """Recommend twice, compare."""
    flags = parser(__doc__)
    flags.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that serving.bundle has made")
    flags.add_argument("--histories", type=Path, required=True, metavar="FILE", help="see above")
    flags.add_argument("--users", type=positive_int, default=2000, help="that are compared, drawn by chance")
    args = flags.parse_args()
    lists = [
        [one.id for one in found]
        for half in (False, True)
        for found in Recommender.open(args.bundle, half=half).recommend(drawn(args), k=10, skip_unknown=True)
    ]
    pairs = [pair for pair in zip(lists[: len(lists) // 2], lists[len(lists) // 2 :], strict=True) if pair[0]]
    if not pairs:
        raise InputError(f"{args.histories}: no history has an item of {args.bundle}. Give histories of its ids.")
    result = {
        "users": len(pairs),
        "same_list": sum(one == other for one, other in pairs) / len(pairs),
        "same_ten": sum({*one} == {*other} for one, other in pairs) / len(pairs),
    }
    print(json.dumps({**result, **machine()}, indent=1))


def drawn(args: argparse.Namespace) -> list[list]:
    """Some histories of the file."""
    if args.histories.suffix == ".pkl":
        histories = [items[:-1] for items in load_sequences(args.histories, "").lists() if len(items) > 1]
    else:
        histories = [user.items for user in itertools.islice(read_histories(args.histories), 10**6) if user.items]
    rows = np.random.default_rng(0).permutation(len(histories))[: args.users]
    return [histories[row] for row in rows]


if __name__ == "__main__":
    run(main)
