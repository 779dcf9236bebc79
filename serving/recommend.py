"""Recommend from a bundle: what comes next for a history that is typed, or for all users of a file.

    python -m serving.recommend my_bundle --history "Blue pen" "Notebook A5"
    python -m serving.recommend my_bundle --history B0012 B0831 --k 5 --json
    python -m serving.recommend my_bundle --histories clicks.csv --output lists.jsonl --candidates in_stock.txt

A word of --history is an item's id or its title. What is neither is taken for the title of an item that the catalog
does not have, and encoded.
--histories takes JSON lines, {"user": "anna", "items": ["B0012", "B0831"]}, or a table with a row for each interaction,
as import_dataset.py does. Items that the catalog does not have are skipped there, and counted. A run that was killed
goes on where it stopped. OUTPUT gets a line for each user, with ids, titles and probabilities, best first.
--candidates and --exclude are files with an id in each line.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from utils.cli import end_at_ctrl_c

if __name__ == "__main__":
    end_at_ctrl_c()

from tqdm import tqdm

from serving.histories import History, read_histories, resumable_lines
from serving.recommender import Entry, Recommendation, Recommender
from serving.store import ItemId
from utils.cli import parser, positive_int, run
from utils.errors import InputError, shown
from utils.files import identity, require_file
from utils.util import add_device_flags, pick_device, print_table

USERS = 256  # whose lists are made together


def main() -> None:
    """Open the bundle, read, recommend, print or write."""
    args = parse()
    recommender = Recommender.open(args.bundle, str(pick_device(args)))
    try:
        if args.history:
            recommend_one(recommender, args)
        else:
            recommend_many(recommender, args)
    except ValueError as error:  # of the library: here ids are the user's
        raise InputError(f"{error}.") from error


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that serving.bundle has made")
    asked = flags.add_mutually_exclusive_group(required=True)
    asked.add_argument("--history", nargs="+", metavar="ITEM", help="ids or titles, in the order of time")
    asked.add_argument("--histories", type=Path, metavar="FILE", help="histories of many users; see above")
    flags.add_argument("--output", type=Path, metavar="FILE.jsonl", help="where the lists of --histories go")
    flags.add_argument("--k", type=positive_int, default=10, help="length of the lists")
    flags.add_argument("--no_exclude_history", action="store_true", help="recommend items of the history, too")
    flags.add_argument("--candidates", type=Path, metavar="FILE", help="ids of the only items that are recommended")
    flags.add_argument("--exclude", type=Path, metavar="FILE", help="ids of items that are not")
    flags.add_argument("--json", action="store_true", help="print JSON in place of a table")
    add_device_flags(flags)
    args = flags.parse_args()
    if (args.histories is None) != (args.output is None):
        flags.error("--histories and --output go together")
    return args


def options(args: argparse.Namespace) -> dict:
    """What flags say of `Recommender.recommend`."""
    candidates = read_ids(args.candidates) if args.candidates else None
    excluded = read_ids(args.exclude) if args.exclude else []
    return {
        "k": args.k,
        "exclude_history": not args.no_exclude_history,
        "candidates": candidates,
        "exclude": excluded,
    }


def read_ids(path: Path) -> list[ItemId]:
    """The ids in the lines of a text file; InputError if there is none."""
    try:
        lines = require_file(path, "Give a file with an id in each line.").read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}). Give a file with an id in each line.") from error
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise InputError(f"{path} has no id. Give a file with an id in each line.")
    return ids


# One history


def recommend_one(recommender: Recommender, args: argparse.Namespace) -> None:
    """Print what comes next in the typed history."""
    history = [find_entry(recommender, word) for word in args.history]
    (found,) = recommender.recommend([history], explain=True, **options(args))
    if args.json:
        print(json.dumps([as_json(one) for one in found], indent=1, ensure_ascii=False))
        return
    rows = [
        [one.id, one.title[:50], "; ".join(reason.title[:30] for reason in one.because), f"{one.probability:.2%}"]
        for one in found
    ]
    print_table(["id", "title", "because of", "probability"], rows, left=3)


def find_entry(recommender: Recommender, word: str) -> Entry:
    """The item that is meant by an id or a title; text of a new one where it is neither, which is said."""
    if not word.strip():
        raise InputError("a word of --history is empty. Give ids or titles.")
    items = recommender.find(word)
    if len(items) > 1:
        ids = " and ".join(str(item.id) for item in items)
        print(f"{shown(word)} is the title of {ids}, and maybe of others: taken for {items[0].id}", file=sys.stderr)
    if items:
        return items[0].id
    print(f"{shown(word)} is neither an id nor a title of the catalog: taken for a new title", file=sys.stderr)
    return {recommender.bundle.title_field: word}


def as_json(one: Recommendation) -> dict:
    """A recommendation with the names of its parts."""
    because = [reason._asdict() for reason in one.because]
    return {"id": one.id, "title": one.title, "probability": one.probability, "because": because}


# Many histories


def recommend_many(recommender: Recommender, args: argparse.Namespace) -> None:
    """Write a line for each user of a file."""
    settings = options(args)
    if args.output.exists() and args.output.samefile(require_file(args.histories, "Name another.")):
        raise InputError(f"--output {args.output} is the file of --histories. Name another.")
    recommender = recommender.snapshot()  # one catalog for all
    view = recommender.view()
    job = {"histories": [str(args.histories), *identity(require_file(args.histories, "Name another."))]}
    job |= {"bundle": [recommender.bundle.folder.name, view.change.generation], **settings}
    started, skipped, empty = time.perf_counter(), 0, 0
    with resumable_lines(args.output, job) as lines, tqdm(initial=lines.done, unit="user", mininterval=1.0) as progress:
        for users in chunks(itertools.islice(read_histories(args.histories), lines.done, None)):
            known = [[item for item in user.items if recommender.has_item(item)] for user in users]
            skipped += sum(len(user.items) - len(items) for user, items in zip(users, known, strict=True))
            empty += sum(not items for items in known)
            lists = iter(recommender.recommend([items for items in known if items], **settings))
            for user, items in zip(users, known, strict=True):
                found = next(lists) if items else []
                record = {"user": user.user, "items": [one.id for one in found]}
                record |= {"titles": [one.title for one in found]}
                record |= {"probabilities": [round(one.probability, 6) for one in found]}
                lines.file.write(json.dumps(record) + "\n")
            lines.keep()
            progress.update(len(users))
        written = progress.n
        if not written:
            raise InputError(f"{args.histories} has no history.")
    print(f"{args.output}: {written} users, {lines.done} of them by an earlier run")
    print(f"  {(written - lines.done) / (time.perf_counter() - started):.1f} users/s")
    if skipped:
        print(f"  {skipped} items of histories are not in the catalog, and were skipped")
    if empty:
        print(f"  {empty} users have no item that is, and got empty lists")


def chunks(histories: Iterator[History]) -> Iterator[list[History]]:
    """Yield some histories at a time."""
    while part := list(itertools.islice(histories, USERS)):
        yield part


if __name__ == "__main__":
    run(main)
