"""Make a data set directory of your own items and histories, ready for predict.py --dataset DIR and for training.

    python data_processing/make_dataset.py --input my_data --output data/test/mine
    python data_processing/make_dataset.py --input my_data --output data/test/mine --test_share 1
    python data_processing/make_dataset.py --input my_data --output data/mine --embeddings my_data/embeddings.npy

Reads from INPUT, each gzip-compressed where its name ends in .gz:

    items.jsonl       {"id": 0, "text": {"title": "Blue pen", "brand": "Bic"}}     ids 0, 1, 2, … without a gap
    sequences.jsonl   {"user": "anna", "items": [0, 17, 4]}                        item ids in time order
    times.jsonl       [1324944000, 1325376000, 1325894400]                         optional, line by line with sequences

A text has the fields of its line without empty ones (null, "", [], NaN, NA and the like), whose number is printed.
Writes to OUTPUT train.pkl, test.pkl (whole histories; of a test user the last item is the target), cold_train.pkl,
cold_test.pkl (of each user a piece of 2 to 4 items), item_text_dict.pkl, item_text_embeddings.npy and .json, with times
test_times.pkl, and dataset.json, which lists them with hashes, so that no reader takes the files of two runs for one
data set. --test_share 1 makes everyone a test user: a zero-shot test.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np

from data_processing.parts import encoding
from data_processing.parts.missing import has_text, is_missing
from data_processing.parts.splits import add_split_flags, cold_pieces, draw_test
from utils.cli import parser, positive_int, run
from utils.datasets import DATA_SET, is_time
from utils.errors import InputError
from utils.files import read_jsonl, staged_set
from utils.pickles import save_pickle
from utils.util import add_device_flags, pick_device

REMEDY = "See --help for the three files that make_dataset.py reads."


def main() -> None:
    """Read and check the files, split the users, embed the items, and write a data set directory."""
    args = parse()
    directory, output = Path(args.input), Path(args.output)
    if args.embeddings is None:
        encoding.require_encoder(args.encoder)
    texts = read_items(find(directory, "items.jsonl"))
    histories, times = read_histories(directory, len(texts))
    kept = {user: items for user, items in histories.items() if len(items) >= args.min_interactions}
    if not kept:
        raise InputError(
            f"{directory}: no user has {args.min_interactions} or more items. Lower --min_interactions, or give users "
            "with longer histories."
        )
    train, test = split_users(kept, args.test_share, args.seed)
    if args.embeddings is not None:
        rows = np.arange(len(texts))
        matrix = encoding.given_embeddings(output, Path(args.embeddings), rows, len(rows), "one per item, in id order")
    else:
        to_encode = encoding.texts_to_encode(texts, directory)
        encoder = encoding.load_encoder(args.encoder, pick_device(args))
        settings = encoding.Encoding(encoding.noted_name(args), encoder, args.batch_size)
        matrix = encoding.encoded_embeddings(output, to_encode, len(texts), settings)

    with matrix as metadata, staged_set(output, DATA_SET) as staging:
        save_pickle(staging / "train.pkl", train)
        save_pickle(staging / "test.pkl", test)
        save_pickle(staging / "cold_train.pkl", dict(cold_pieces(train.items(), np.random.default_rng((args.seed, 1)))))
        save_pickle(staging / "cold_test.pkl", dict(cold_pieces(test.items(), np.random.default_rng((args.seed, 2)))))
        save_pickle(staging / "item_text_dict.pkl", texts)
        if times is not None:
            save_pickle(staging / "test_times.pkl", {user: times[user] for user in test})
        encoding.save_metadata(staging, metadata)
    print(
        f"{output}: {len(train)} train users, {len(test)} test users, {sum(map(len, kept.values()))} interactions, "
        f"{len(texts)} items, {sum(not fields for fields in texts.values())} of them without text"
    )
    few = len(histories) - len(kept)
    if few:
        print(f"  {few} of {len(histories)} users left out by --min_interactions {args.min_interactions}")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    flags = parser(__doc__)
    flags.add_argument("--input", required=True, metavar="DIR", help="directory with items.jsonl and sequences.jsonl")
    flags.add_argument("--output", required=True, metavar="DIR", help="data set directory to write to")
    encoding.add_encoder_flags(flags, "items")
    flags.add_argument("--min_interactions", type=positive_int, default=2, help="leave out users with fewer items")
    add_split_flags(flags)
    add_device_flags(flags)
    return flags.parse_args()


def split_users(histories: dict[Any, list[int]], test_share: float, seed: int) -> tuple[dict, dict]:
    """Split the users at random into train and test; both keep the order of `histories`."""
    in_test = draw_test(len(histories), test_share, seed)
    train, test = (dict(itertools.compress(histories.items(), chosen)) for chosen in (~in_test, in_test))
    return train, test


def find(directory: Path, name: str) -> Path:
    """The file of that name, or with .gz if only that exists."""
    packed = directory / f"{name}.gz"
    return packed if packed.is_file() and not (directory / name).is_file() else directory / name


def read_items(path: Path) -> dict[int, dict[str, Any]]:
    """Read item id -> text fields, in ascending order; drops empty fields, and prints how many there were.

    Raises:
        InputError: an id that is no integer, given twice or missing, or a text that is no object; names the line.
    """
    texts: dict[int, dict[str, Any]] = {}
    empty = 0
    for line, record in read_jsonl(path, REMEDY):
        item, text = record.get("id"), record.get("text")
        if type(item) is not int or item < 0:
            raise InputError(f"{path}, line {line}: id is {item!r}, expected an integer of 0 or more.")
        if item in texts:
            raise InputError(f"{path}, line {line}: id {item} was given before. Give every item one line.")
        if not isinstance(text, dict):
            raise InputError(
                f'{path}, line {line}: text is {str(text)[:60]!r}, expected an object such as {{"title": "…"}}.'
            )
        texts[item] = {name: field for name, field in text.items() if has_text(field)}
        empty += len(text) - len(texts[item])
    missing = next((item for item in range(len(texts)) if item not in texts), None)
    if missing is not None or not texts:
        raise InputError(
            f"{path}: {len(texts)} items, but none with id {missing or 0}; ids must be 0, 1, 2, … without a gap. "
            "Number the items again, in sequences.jsonl too."
        )
    if empty:
        print(f"{path}: {empty} text fields with nothing in them (empty, null, NaN, NA, …) left out")
    return {item: texts[item] for item in range(len(texts))}


def read_histories(directory: Path, count: int) -> tuple[dict[Any, list[int]], dict[Any, list[float]] | None]:
    """Read user -> item ids from sequences.jsonl and, if it exists, user -> times from times.jsonl.

    Raises:
        InputError: a user without name or given twice, an empty history, an item id of `count` or more, or times that
            do not match the items; names the line.
    """
    path, times_path = find(directory, "sequences.jsonl"), find(directory, "times.jsonl")
    items: dict[Any, list[int]] = {}
    lines: list[int] = []
    for line, record in read_jsonl(path, REMEDY):
        user, history = record.get("user"), record.get("items")
        if type(user) not in (int, str) or is_missing(user):
            raise InputError(f"{path}, line {line}: user is {user!r}, expected a name or a number.")
        if user in items:
            raise InputError(f"{path}, line {line}: user {user!r} was given before. Give every user one line.")
        check_history(history, count, f"{path}, line {line}")
        items[user] = history
        lines.append(line)
    if not times_path.is_file():
        return items, None

    times = list(read_times(times_path))
    if len(times) != len(items):
        raise InputError(f"{times_path} has {len(times)} lines, {path} has {len(items)} users. {REMEDY}")
    for (line, user_times), sequence_line, history in zip(times, lines, items.values(), strict=True):
        if len(user_times) != len(history):
            raise InputError(
                f"{times_path}, line {line}: {len(user_times)} times, but {len(history)} items in {path.name}, "
                f"line {sequence_line}. Give every item its time."
            )
    return items, dict(zip(items, (user_times for _, user_times in times), strict=True))


def check_history(history: Any, count: int, where: str) -> None:
    """Raise InputError, which begins with `where`, unless `history` is a list of one or more item ids below `count`."""
    if not isinstance(history, list) or not history:
        raise InputError(f"{where}: items is {str(history)[:60]}, expected one or more item ids. Remove the line.")
    for item in history:
        if type(item) is not int or not 0 <= item < count:
            raise InputError(
                f"{where}: item {item!r} is not in items.jsonl, which has ids 0 to {count - 1}. "
                "Add the item there, or take it out here."
            )


def read_times(path: Path) -> Iterator[tuple[int, list[float]]]:
    """Yield (line number from 1, Unix seconds of the items of one history).

    Raises:
        InputError: a damaged file, or a line that is not a JSON list of finite numbers in order; names the line.
    """
    for line, times in read_jsonl(path, REMEDY, object):
        if not isinstance(times, list) or not all(map(is_time, times)):
            raise InputError(f"{path}, line {line}: found {str(times)[:60]}, expected a list of finite numbers.")
        for early, late in itertools.pairwise(times):
            if late < early:
                raise InputError(
                    f"{path}, line {line}: {late} comes after {early}, expected times in order. Sort them, and the "
                    "items in sequences.jsonl with them."
                )
        yield line, times


if __name__ == "__main__":
    run(main)
