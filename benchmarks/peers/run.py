"""Lists of a trained peer (SASRec, BERT4Rec, EASE) or of popularity, in the form of predict.py --output.

    .venv-peers/bin/python benchmarks/peers/run.py --dataset my_shop --model sasrec --output sasrec.jsonl

A peer is trained on train.pkl alone. How many epochs it takes, or how strongly EASE is regularised, is chosen by
NDCG@10 on the last items of its lists, by a training that has not seen them; then it is trained anew on the whole of
train.pkl. Of the lists of test.pkl the last items, the targets, are cut off before anything else is done.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch

from utils.cli import SWITCH, parser, positive_float, positive_int, run
from utils.cli import seed as seed_number
from utils.compare import write_lists
from utils.data import Sequences
from utils.datasets import MAKE_TEST, check_ids, dataset_folder, load_sequences
from utils.errors import InputError
from utils.files import check_writable, load_matrix
from utils.scores import lists_by, popular
from utils.util import add_device_flags, pick_device

CUT = 10  # the k of the NDCG@k that decides
VALIDATION_USERS = 5000  # at most so many decide
PATIENCE = 5  # trials without a better one, after which no further one is made

Lists = list[tuple[np.ndarray, np.ndarray]]  # for each history items (k,) int64, best first, and scores (k,) float32
Recommend = Callable[[Sequences, int, bool], Lists]  # histories, k, whether to leave out their items -> lists


class Peer(NamedTuple):
    """A recommender that is trained on histories."""

    setting: str  # name of what is chosen
    trials: Callable[[Sequences], Iterator[tuple[Any, Recommend]]]  # a setting, and what training with it gives
    train: Callable[[Sequences, Any], Recommend]  # with one setting


def main() -> None:
    """Read, choose a setting, train with it, write lists."""
    args = parse()
    train, histories, items = read(dataset_folder(args.dataset), args.drop_short)
    started = time.perf_counter()
    recommend = popularity = most_popular(train, items)
    if args.model != "popular":
        peer = load_peer(args.model, items, pick_device(args), args.seed)
        setting = args.epochs
        if setting is None:
            fitted_on, held_out = validation(train, args.seed)
            judge = make_judge(*held_out, args.exclude_history)
            setting = choose(peer, fitted_on, judge, 60 * (args.minutes or math.inf))
        print(f"{args.model}: trains on the whole of train.pkl, {peer.setting} {setting}", flush=True)
        recommend = peer.train(train, setting)
    lists = recommend(histories, args.k, args.exclude_history)
    lists = fill(lists, popularity, histories, args.k, args.exclude_history)
    write_lists(args.output, histories.users, ((found.tolist(), scores.tolist()) for found, scores in lists))
    print(f"{args.output}: lists for {len(lists)} users, {time.perf_counter() - started:.0f} s")


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("--dataset", required=True, help="data/test/NAME, or a data set directory")
    flags.add_argument("--model", required=True, choices=("sasrec", "bert4rec", "ease", "popular"))
    flags.add_argument("--output", required=True, metavar="FILE.jsonl", help="each user's items and scores")
    flags.add_argument("--exclude_history", **SWITCH, help="recommend only what is new to the user")
    flags.add_argument("--k", type=positive_int, default=100, help="items per user")
    flags.add_argument("--minutes", type=positive_float, help="end the choice of a setting after so many")
    flags.add_argument("--epochs", type=positive_int, help="train for so many; nothing is chosen")
    flags.add_argument("--seed", type=seed_number, default=0)
    flags.add_argument("--drop_short", action="store_true", help="leave out test users with fewer than two items")
    add_device_flags(flags)
    args = flags.parse_args()
    if args.epochs and args.model in ("ease", "popular"):
        flags.error(f"--epochs: {args.model} has none. Leave it out.")
    check_writable(args.output)
    return args


def read(folder: Path, drop_short: bool) -> tuple[Sequences, Sequences, int]:
    """The lists of train.pkl, those of test.pkl without their targets, and the number N of items of the catalog."""
    embeddings = folder / "item_text_embeddings.npy"
    count = len(load_matrix(embeddings, MAKE_TEST))
    train = load_sequences(folder / "train.pkl", MAKE_TEST, drop_short=True, shortest=1)
    test = load_sequences(folder / "test.pkl", MAKE_TEST, drop_short)
    for name, sequences in (("train.pkl", train), ("test.pkl", test)):
        check_ids(sequences, count, folder / name, str(embeddings))
    return train, test.split_targets()[0], count


def load_peer(name: str, items: int, device: torch.device, seed: int) -> Peer:
    """A peer of RecTools, which only the environment of this folder has."""
    try:
        from benchmarks.peers import library
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed here. Run this with .venv-peers/bin/python, which "
            "benchmarks/peers/setup.sh makes."
        ) from error
    return library.make_peer(name, items, device, seed)


def validation(train: Sequences, seed: int) -> tuple[Sequences, tuple[Sequences, np.ndarray]]:
    """The lists of train.pkl without their last items; and of some of them what remains, and the item cut off.

    A list of one item is left as it is, and decides nothing.
    """
    fitted_on = Sequences.of(*(items[:-1] or items for items in train.lists()))
    rows = np.flatnonzero(train.lengths > 1)
    if len(rows) > VALIDATION_USERS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, VALIDATION_USERS, replace=False))
    return fitted_on, train.select(rows).split_targets()


def make_judge(histories: Sequences, targets: np.ndarray, exclude_history: bool) -> Callable[[Recommend], float]:
    """The function that measures NDCG@10 of a recommender on validation targets."""

    def judge(recommend: Recommend) -> float:
        lists = recommend(histories, CUT, exclude_history)
        places = [np.flatnonzero(items == target) for (items, _), target in zip(lists, targets, strict=True)]
        return sum(1 / math.log2(place[0] + 2) for place in places if len(place)) / len(targets)

    return judge


def choose(peer: Peer, fitted_on: Sequences, judge: Callable[[Recommend], float], seconds: float) -> Any:
    """The setting that is judged best; ends after `seconds`, or where the last `PATIENCE` trials were no better."""
    started, best, best_setting, since = time.perf_counter(), -1.0, None, 0
    for setting, recommend in peer.trials(fitted_on):
        found, passed = judge(recommend), time.perf_counter() - started
        print(f"{peer.setting} {setting}: NDCG@{CUT} {found:.4f} on validation targets, {passed:.0f} s", flush=True)
        since += 1
        if found > best:
            best, best_setting, since = found, setting, 0
        if since == PATIENCE or passed > seconds:
            break
    return best_setting


def most_popular(train: Sequences, items: int) -> Recommend:
    """Recommends to everyone what occurs most often in `train`; of equal counts the lowest ids first."""
    counts = np.bincount(train.items, minlength=items)

    def recommend(histories: Sequences, k: int, exclude_history: bool) -> Lists:
        lists = lists_by(popular(counts), histories, np.ones(items, dtype=bool), k, exclude_history)
        return [(best[best >= 0], counts[best[best >= 0]].astype(np.float32)) for best in lists]

    return recommend


def fill(lists: Lists, popular: Recommend, histories: Sequences, k: int, exclude_history: bool) -> Lists:
    """Give the popular items to who has no list: users all of whose items are unknown to the peer."""
    empty = np.array([row for row, (items, _) in enumerate(lists) if not len(items)], dtype=np.int64)
    filled = list(lists)
    for row, listed in zip(empty, popular(histories.select(empty), k, exclude_history), strict=True):
        filled[row] = listed
    if len(empty):
        print(f"{len(empty)} users have no item that was trained on: they get the popular ones")
    return filled


if __name__ == "__main__":
    run(main)
