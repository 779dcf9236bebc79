"""Turn raw reviews and item metadata into user histories and item texts.

    python data_processing/data_process_1.py --reviews Baby_Products.jsonl --meta meta_Baby_Products.jsonl \\
        --output data/baby
    python data_processing/data_process_1.py --reviews r.jsonl.gz --meta m.jsonl.gz --output data/mine --test_share 0

Reads JSON lines, gzip-compressed or not, in the form of Amazon Reviews 2023: reviews with user_id, parent_asin and
timestamp, metadata with parent_asin and the text fields. Writes to OUTPUT train.pkl and test.pkl (dict user -> item ids
in time order) and item_text_dict.pkl (dict item id -> dict of text fields). Users and items are numbered from 0.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from utils.cli import parser, positive_int, run, seed
from utils.errors import InputError
from utils.files import read_jsonl, save_pickle

TEXT_FIELDS = ("main_category", "title", "description", "categories", "details")  # in the release's order
REMEDY = "Fetch it with data_processing/data_download.py --amazon CATEGORY."


def main() -> None:
    """Parse, read, number, split, write."""
    flags = parser(__doc__)
    flags.add_argument("--reviews", required=True, metavar="FILE", help="reviews, .jsonl or .jsonl.gz")
    flags.add_argument("--meta", required=True, metavar="FILE", help="item metadata, .jsonl or .jsonl.gz")
    flags.add_argument("--output", required=True, metavar="DIR", help="data set directory to write to")
    flags.add_argument("--min_interactions", type=positive_int, default=5, help="leave out users with fewer items")
    add_split_flags(flags)
    args = flags.parse_args()

    histories, item_names = number_histories(read_reviews(args.reviews), args.min_interactions)
    if not histories:
        raise InputError(
            f"{args.reviews}: no user has {args.min_interactions} or more reviews. Lower --min_interactions."
        )
    texts = read_texts(args.meta, item_names)
    train, test = split_users(histories, args.test_share, args.seed)

    output = Path(args.output)
    save_pickle(output / "train.pkl", train)
    save_pickle(output / "test.pkl", test)
    save_pickle(output / "item_text_dict.pkl", texts)
    print(
        f"{output}: {len(train)} train users, {len(test)} test users, "
        f"{sum(map(len, histories.values()))} interactions, {len(item_names)} items, "
        f"{len(item_names) - len(texts)} of them without text"
    )


def add_split_flags(flags: argparse.ArgumentParser) -> None:
    """--test_share and --seed."""
    flags.add_argument("--test_share", type=share, default=0.1, help="share of the users that go to test.pkl, 0 to 1")
    flags.add_argument("--seed", type=seed, default=0, help="of every random choice")


def share(text: str) -> float:
    """argparse type for a share from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def read_reviews(path: str | Path) -> dict[str, list[str]]:
    """User name -> item names in time order, users by first appearance; equal times keep the file's order.

    Raises:
        InputError: a line without user_id, parent_asin or a numeric timestamp.
    """
    timed: dict[str, list[tuple[float, str]]] = {}
    for line, review in tqdm(read_jsonl(path, REMEDY), desc="reviews", unit=" lines"):
        user, item, time = review.get("user_id"), review.get("parent_asin"), review.get("timestamp")
        if not user or not item:
            missing = "parent_asin" if user else "user_id"
            raise InputError(f"{path}, line {line}: no {missing}, expected user_id, parent_asin and timestamp.")
        timed.setdefault(user, []).append((_number(time, path, line), item))
    return {user: [item for _, item in sorted(events, key=_time)] for user, events in timed.items()}


def _time(event: tuple[float, str]) -> float:
    return event[0]


def _number(time: Any, path: str | Path, line: int) -> float:
    try:
        number = float(time)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"{path}, line {line}: timestamp {time!r} is not a number; expected seconds or milliseconds. "
            "Mend or remove the line."
        )
    return number


def number_histories(
    histories: dict[str, list[str]], min_interactions: int
) -> tuple[dict[int, list[int]], dict[str, int]]:
    """Leave out short histories; number the users and, walking along their histories, the items, both from 0.

    Returns:
        dict user -> item ids, and dict item name -> item id.
    """
    item_ids: dict[str, int] = {}
    kept = (items for items in histories.values() if len(items) >= min_interactions)
    numbered = {user: [item_ids.setdefault(item, len(item_ids)) for item in items] for user, items in enumerate(kept)}
    return numbered, item_ids


def read_texts(path: str | Path, item_ids: dict[str, int]) -> dict[int, dict[str, Any]]:
    """Item id -> text fields, ascending; of repeated metadata the last wins, items without any field are left out.

    Raises:
        InputError: a line without parent_asin.
    """
    texts: dict[int, dict[str, Any]] = {}
    for line, metadata in tqdm(read_jsonl(path, REMEDY), desc="metadata", unit=" lines"):
        item = metadata.get("parent_asin")
        if not item:
            raise InputError(f"{path}, line {line}: no parent_asin, expected it and text fields ({TEXT_FIELDS}).")
        if item in item_ids:
            texts[item_ids[item]] = text_fields(metadata)
    return {item: texts[item] for item in sorted(texts) if texts[item]}


def text_fields(metadata: dict[str, Any]) -> dict[str, Any]:
    """The text fields that an item has, in the release's order; `details` as a JSON string."""
    fields = {name: metadata[name] for name in TEXT_FIELDS if name in metadata}
    if "details" in fields and not isinstance(fields["details"], str):
        fields["details"] = json.dumps(fields["details"])
    return fields


def split_users(histories: dict[Any, list[int]], test_share: float, seed: int) -> tuple[dict, dict]:
    """Split users at random into train and test; both keep the order of `histories`."""
    drawn = np.random.default_rng(seed).permutation(len(histories))[: round(test_share * len(histories))]
    in_test = set(drawn.tolist())
    train: dict[Any, list[int]] = {}
    test: dict[Any, list[int]] = {}
    for place, (user, items) in enumerate(histories.items()):
        (test if place in in_test else train)[user] = items
    return train, test


if __name__ == "__main__":
    run(main)
