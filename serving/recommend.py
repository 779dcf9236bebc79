"""Recommend from a bundle: what comes next for a history that is typed, or for all users of a file.

    python -m serving.recommend my_bundle --history "Blue pen" "Notebook A5"
    python -m serving.recommend my_bundle --history B0012 B0831 --k 5 --json
    python -m serving.recommend my_bundle --histories clicks.csv --output lists.jsonl --candidates in_stock.txt
    torchrun --nproc_per_node 2 -m serving.recommend my_bundle --histories clicks.csv --output lists.jsonl
    python -m serving.recommend my_bundle --similar "Blue pen"

A word of --history is an item's id or its title. What is neither is taken for the title of an item that the catalog
does not have, and encoded. --similar lists the items whose texts are nearest to one's.
--histories takes JSON lines, {"user": "anna", "items": ["B0012", "B0831"]}, or a table with a row for each interaction,
as import_dataset.py does. Items that the catalog does not have are skipped there, and counted. A run that was killed
goes on where it stopped. OUTPUT gets a line for each user, with ids, titles and probabilities, best first. Under
torchrun several processes share the users, each with a GPU of its own where there are some; the file is the same.
--filter takes conditions as import_dataset.py's --keep, on the fields of items: "price < 20", "brand = 'Parker'".
--candidates and --exclude are files with an id in each line; ids that no item has are passed over, and counted.
"""

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from utils.cli import end_at_ctrl_c

if __name__ == "__main__":
    end_at_ctrl_c()

from tqdm import tqdm

from serving.asked import Entry
from serving.histories import History, Lines, Reading, read_histories, resumable_lines
from serving.item_files import add_format_flags
from serving.recommender import Recommendation, Recommender
from serving.store import ItemId
from serving.view import Reason
from utils.cli import parser, positive_int, run
from utils.errors import InputError, shown
from utils.files import atomic_write, identity, require_file
from utils.processes import Place, joined_processes
from utils.util import add_device_flags, pick_device, print_table, printable

USERS = 256  # whose lists are made together


def main() -> None:
    """Open the bundle, read, recommend, print or write."""
    args = parse()
    try:
        with joined_processes(args) as place:
            if place.count > 1 and not args.histories:
                raise InputError("several processes share --histories; start one alone for a single history.")
            recommender = Recommender.open(args.bundle, str(pick_device(args)), args.half)
            if args.similar is not None:
                print_similar(recommender, args)
            elif args.history:
                recommend_one(recommender, args)
            else:
                recommend_many(recommender, args, place)
    except ValueError as error:  # of the library: here ids are the user's
        raise InputError(f"{str(error).removesuffix('.')}.") from error


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that serving.bundle has made")
    asked = flags.add_mutually_exclusive_group(required=True)
    asked.add_argument("--history", nargs="+", metavar="ITEM", help="ids or titles, in the order of time")
    asked.add_argument("--histories", type=Path, metavar="FILE", help="histories of many users; see above")
    asked.add_argument("--similar", metavar="ITEM", help="id or title of an item, whose like are listed")
    flags.add_argument("--output", type=Path, metavar="FILE.jsonl", help="where the lists of --histories go")
    flags.add_argument("--k", type=positive_int, default=10, help="length of the lists")
    flags.add_argument("--no_exclude_history", action="store_true", help="recommend items of the history, too")
    flags.add_argument("--candidates", type=Path, metavar="FILE", help="ids of the only items that are recommended")
    flags.add_argument("--exclude", type=Path, metavar="FILE", help="ids of items that are not")
    flags.add_argument(
        "--filter", nargs="+", default=[], metavar="CONDITION", help="on the items' fields: 'price < 20'"
    )
    flags.add_argument("--json", action="store_true", help="print JSON in place of a table")
    add_format_flags(flags)
    flags.add_argument("--names", nargs="+", metavar="NAME", help="of its columns, if it has no line of names")
    for role in ("user", "item", "time"):
        flags.add_argument(f"--{role}_column", metavar="NAME", help=f"column of the {role}, if it has no usual name")
    flags.add_argument("--time_format", nargs="+", metavar="FORM", help="of its times, such as '%%d/%%m/%%Y %%H:%%M'")
    flags.add_argument("--half", action="store_true", help="weights of 16 bits on a CPU: faster for short histories")
    add_device_flags(flags)
    args = flags.parse_args()
    if (args.histories is None) != (args.output is None):
        flags.error("--histories and --output go together")
    if args.similar is not None and (args.candidates or args.exclude or args.filter):
        flags.error("--similar looks at all items: leave out --candidates, --exclude and --filter")
    return args


def options(recommender: Recommender, args: argparse.Namespace) -> dict:
    """What flags say of `Recommender.recommend`."""
    if args.filter:
        count, lacking = recommender.matching(args.filter)
        without = "".join(f"; {items} have no {name}, and meet no condition on it" for name, items in lacking.items())
        print(f"--filter: {count} of {recommender.view().change.count} items{without}", file=sys.stderr)
    return {
        "k": args.k,
        "exclude_history": not args.no_exclude_history,
        "candidates": read_ids(recommender, args.candidates) if args.candidates else None,
        "exclude": read_ids(recommender, args.exclude) if args.exclude else [],
        "filter": args.filter,
    }


def read_ids(recommender: Recommender, path: Path) -> list[ItemId]:
    """The ids in the lines of a text file that items have; InputError if there is none."""
    remedy = "Give a file with an id in each line."
    try:
        lines = require_file(path, remedy).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}). {remedy}") from error
    ids = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
    unknown = {number: item for number, item in ids.items() if not recommender.has_item(item)}
    if len(unknown) == len(ids):
        raise InputError(f"{path} has no id of an item. {remedy}")
    if unknown:
        number, item = next(iter(unknown.items()))
        print(
            f"{path}: {len(unknown)} of {len(ids)} ids are those of no item, and were passed over; the first is "
            f"{shown(item)} in line {number}",
            file=sys.stderr,
        )
    return [item for number, item in ids.items() if number not in unknown]


# One history


def recommend_one(recommender: Recommender, args: argparse.Namespace) -> None:
    """Print what comes next in the typed history."""
    history = [find_entry(recommender, word) for word in args.history]
    (found,) = recommender.recommend([history], explain=True, **options(recommender, args))
    if args.json:
        print_json([as_json(one) for one in found])
        return
    rows = [[one.id, one.title[:50], "; ".join(map(as_text, one.because)), f"{one.probability:.2%}"] for one in found]
    print_table(["id", "title", "because of (likeness of texts, share in the log)", "probability"], rows, left=3)


def print_similar(recommender: Recommender, args: argparse.Namespace) -> None:
    """Print the items whose texts are nearest to one's."""
    found = recommender.similar_items(find_entry(recommender, args.similar), args.k)
    if args.json:
        print_json([{"id": item.id, "title": item.title, "similarity": cosine} for item, cosine in found])
        return
    print_table(["id", "title", "likeness"], [[item.id, item.title[:50], f"{cosine:.2f}"] for item, cosine in found], 2)


def print_json(value: list[dict]) -> None:
    """Print a list as JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def as_text(reason: Reason) -> str:
    """A reason in a few words."""
    bought = f", {reason.followed:.1%}" if reason.followed else ""
    return f"{reason.title[:30]} ({reason.similarity:.2f}{bought})"


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
    near = recommender.suggest(word)
    meant = f" (did you mean {' or '.join(map(printable, near))}?)" if near else ""
    print(f"{shown(word)} is neither an id nor a title of the catalog: taken for a new title{meant}", file=sys.stderr)
    return {recommender.bundle.title_field: word}


def as_json(one: Recommendation) -> dict:
    """A recommendation with the names of its parts."""
    because = [reason._asdict() for reason in one.because]
    return {"id": one.id, "title": one.title, "probability": one.probability, "because": because}


# Many histories


class Counts(NamedTuple):
    """What a process has done, and an earlier run of it that was stopped."""

    written: int  # users, of whom
    done: int  # were written by an earlier run
    skipped: int  # items that the catalog does not have
    empty: int  # users without any other
    listed: Counter[ItemId]  # in how many lists each item stands


def recommend_many(recommender: Recommender, args: argparse.Namespace, place: Place) -> None:
    """Write a line for each user of a file, in its order."""
    recommender = recommender.snapshot()  # one catalog for all
    settings, started = options(recommender, args), time.perf_counter()
    if args.output.exists() and args.output.samefile(require_file(args.histories, "Name another.")):
        raise InputError(f"--output {args.output} is the file of --histories. Name another.")
    outputs = [args.output]
    if place.count > 1:
        outputs = [args.output.with_name(f"{args.output.name}.{rank}-of-{place.count}") for rank in range(place.count)]
    reading = Reading(*(getattr(args, name) for name in Reading._fields))
    job = {"histories": [str(args.histories), *identity(require_file(args.histories, "Name another."))]}
    generation = recommender.view().change.generation
    job |= {"bundle": [recommender.bundle.folder.name, generation], "reading": reading, "share": place, **settings}
    with resumable_lines(outputs[place.rank], job, USERS) as lines:
        users = read_histories(args.histories, reading)
        own = (user for number, user in enumerate(users) if number // USERS % place.count == place.rank)
        counts = write_lists(recommender, settings, own, lines)
        every = place.gathered(counts)  # a process that stops earlier leaves all parts to the next run
        if every is not None and not sum(each.written for each in every):
            raise InputError(f"{args.histories} has no history.")
    place.wait()  # until all parts have their names
    if every is not None:
        if place.count > 1:
            join_parts(outputs, args.output)
        report(args.output, every, time.perf_counter() - started, recommender.view().change.count)


def write_lists(recommender: Recommender, settings: dict, users: Iterator[History], lines: Lines) -> Counts:
    """Write the lines of those users who have none from an earlier run."""
    counts, listed = Counter(), Counter(item for record in lines.earlier() for item in record["items"])

    def look_up(part: list[History]) -> list[list[ItemId]]:
        """The items of each user that the catalog has; counts the others."""
        known = [[item for item in user.items if recommender.has_item(item)] for user in part]
        counts["skipped"] += sum(len(user.items) - len(items) for user, items in zip(part, known, strict=True))
        counts["empty"] += sum(not items for items in known)
        return known

    for part in chunks(itertools.islice(users, lines.done)):
        look_up(part)
    with tqdm(initial=lines.done, unit="user", mininterval=1.0) as progress:
        for part in chunks(users):
            known = look_up(part)
            found = iter(recommender.recommend([items for items in known if items], **settings))
            for user, items in zip(part, known, strict=True):
                one = next(found) if items else []
                record = {"user": user.user, "items": [each.id for each in one]}
                record |= {"titles": [each.title for each in one]}
                record |= {"probabilities": [round(each.probability, 6) for each in one]}
                listed.update(record["items"])
                lines.file.write(json.dumps(record) + "\n")
            lines.keep()
            progress.update(len(part))
        return Counts(progress.n, lines.done, counts["skipped"], counts["empty"], listed)


def join_parts(parts: list[Path], output: Path) -> None:
    """Write the lines of several processes in the order of the users, and remove their files."""
    with contextlib.ExitStack() as stack, atomic_write(output, "w") as file:
        readers = [stack.enter_context(part.open(encoding="utf-8")) for part in parts]
        for reader in itertools.cycle(readers):
            lines = list(itertools.islice(reader, USERS))
            if not lines:
                break
            file.writelines(lines)
    for part in parts:
        part.unlink()


def report(output: Path, every: list[Counts], seconds: float, candidates: int) -> None:
    """Print what all processes have done."""
    written, done, skipped, empty = (sum(column) for column in zip(*(each[:4] for each in every), strict=True))
    listed = sum((each.listed for each in every), Counter())
    earlier = f", {done} of them by an earlier run" if done else ""
    print(f"{output}: {written} users{earlier}, {(written - done) / seconds:.1f} users/s")
    if skipped:
        print(f"  {skipped} items of histories are not in the catalog, and were skipped")
    if empty:
        print(f"  {empty} users have no item that is, and got empty lists")
    if listed:
        ((item, count),) = listed.most_common(1)
        many = f"{len(listed)} of {candidates} items"
        print(f"  {many} are recommended; {shown(item)} stands in {count / written:.0%} of the lists")


def chunks(histories: Iterator[History]) -> Iterator[list[History]]:
    """Yield some histories at a time."""
    while part := list(itertools.islice(histories, USERS)):
        yield part


if __name__ == "__main__":
    run(main)
