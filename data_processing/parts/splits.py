"""Histories of all users, split into train.pkl and test.pkl and written to a data set directory."""

import argparse
import datetime
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_processing.parts.tables import Tables
from utils.cli import seed
from utils.data import Sequences, cumulate, spans
from utils.errors import InputError
from utils.files import atomic_write
from utils.pickles import save_dict

SHORTEST_PIECE, LONGEST_PIECE = 2, 4  # items of a cold-start list, its target included
AT_ONCE = 1 << 16  # histories that are lists at the same time
DEFAULT_SPLIT_TIME = 0.9  # proportion of the interactions
SHORTEST = 2  # items of a list: a history and a target


class Histories(NamedTuple):
    """The items of all users in time order, one user after another."""

    items: np.ndarray  # (interactions,) int32
    times: np.ndarray | None  # (interactions,) float64 seconds, where they are known
    offsets: np.ndarray  # (U + 1,) int64

    @property
    def lengths(self) -> np.ndarray:
        """(U,) int64 items of each user."""
        return np.diff(self.offsets)


class Parts(NamedTuple):
    """How many items, from the first on, of each user go to train.pkl and to test.pkl."""

    train: np.ndarray  # (U,) int64
    test: np.ndarray  # (U,) int64


@dataclass(frozen=True)
class SplitSettings:
    """How histories are split."""

    split: str  # one of SPLITS
    split_time: float | None  # Unix seconds, or a proportion of the interactions; None: DEFAULT_SPLIT_TIME
    test_share: float  # proportion of the users that go to test.pkl
    seed: int


def load_rows(tables: Tables, query: str, users: int) -> Histories:
    """Load the histories of `users` users from a query with user_id, item and time, sorted by user and time."""
    columns = tables.columns(query)
    offsets = cumulate(np.bincount(columns["user_id"], minlength=users))
    return Histories(columns["item"], columns["time"], offsets)


def item_texts(tables: Tables, rows: str, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (item id, text fields by name) in ascending order, from rows with `id` and `fields`, a list of JSON."""
    for item, fields in tables.rows(f"SELECT id, fields FROM {rows} ORDER BY id"):
        yield item, {name: json.loads(field) for name, field in zip(names, fields, strict=True) if field is not None}


def save_histories(folder: Path, tables: Tables, histories: Histories, parts: Parts, seed: int, last: bool) -> None:
    """Write train.pkl, test.pkl, their cold-start pieces, item_ids.jsonl and, where times are known, test_times.pkl.

    The names are in the tables `users` and `items`; `seed` is that of the pieces. With `last` the pieces of test lists
    end with the last items: those in front of them are known from train.pkl.
    """
    for draw, (name, lengths) in enumerate(parts._asdict().items(), start=1):
        save_dict(folder / f"{name}.pkl", named_lists(tables, histories, histories.items, lengths))
        whole = named_lists(tables, histories, histories.items, lengths)
        pieces = cold_pieces(whole, np.random.default_rng((seed, draw)), last and name == "test")
        save_dict(folder / f"cold_{name}.pkl", pieces)
    if histories.times is not None:
        save_dict(folder / "test_times.pkl", named_lists(tables, histories, histories.times, parts.test))
    with atomic_write(folder / "item_ids.jsonl", "w") as file:
        for item, name in enumerate(original_names(tables, "items")):
            file.write(json.dumps({"id": item, "item": name}, ensure_ascii=False) + "\n")


def named_lists(
    tables: Tables, histories: Histories, values: np.ndarray, lengths: np.ndarray
) -> Iterator[tuple[Any, list]]:
    """Yield the name of each user with the first of the user's values; users of whom nothing is taken are left out.

    `values` (interactions,) are items or times, `lengths` (U,) how many of them are taken of each user.
    """

    def lists() -> Iterator[list]:
        rows = np.flatnonzero(lengths)
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            taken = values[spans(histories.offsets[part], lengths[part])]
            yield from Sequences(None, taken, cumulate(lengths[part])).lists()

    return zip(itertools.compress(original_names(tables, "users"), lengths > 0), lists(), strict=True)


def original_names(tables: Tables, name: str) -> Iterator[int | str]:
    """Yield the names in the table `users` or `items` in the order of the ids; as numbers if all names are numbers."""
    whole = tables.value(f"SELECT bool_and(regexp_full_match(name, '0|-?[1-9][0-9]{{0,17}}')) FROM {name}")
    for (found,) in tables.rows(f"SELECT name FROM {name} ORDER BY id"):
        yield int(found) if whole else found


def cold_pieces(
    histories: Iterable[tuple[Any, list[int]]], random: np.random.Generator, last: bool = False
) -> Iterator[tuple[Any, list[int]]]:
    """Yield a contiguous piece of 2 to 4 items of each user's history; length and start are drawn as in the release.

    With `last` the piece is the end of the history. Users with fewer than two items are left out.
    """
    for user, items in histories:
        if len(items) < SHORTEST_PIECE:
            continue
        length = int(random.integers(SHORTEST_PIECE, min(LONGEST_PIECE, len(items)) + 1))
        start = int(random.integers(max(0, len(items) - LONGEST_PIECE) + 1))
        yield user, items[-length:] if last else items[start : start + length]


def add_split_flags(flags: argparse.ArgumentParser) -> None:
    """Add --test_share and --seed."""
    flags.add_argument("--test_share", type=proportion, default=0.1, help="share of the users in test.pkl, 0 to 1")
    flags.add_argument("--seed", type=seed, default=0, help="of every random choice")


def proportion(text: str) -> float:
    """argparse type for a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def draw_test(users: int, test_share: float, seed: int) -> np.ndarray:
    """(users,) bool: whether a user goes to test.pkl, drawn at random."""
    in_test = np.zeros(users, dtype=bool)
    in_test[np.random.default_rng(seed).permutation(users)[: round(test_share * users)]] = True
    return in_test


def split(histories: Histories, settings: SplitSettings, path: Path) -> Parts:
    """Split histories by one of SPLITS; lists of one item are left out.

    Raises:
        InputError: nobody is left to test, or, where --test_share is 0, to train on; names `path`, the interactions.
    """
    parts = Parts(*(np.where(part < SHORTEST, 0, part) for part in SPLITS[settings.split](histories, settings)))
    if not parts.test.any() and (settings.split != "users" or not parts.train.any()):
        remedy = "Give users with longer histories"
        if settings.split == "time":
            remedy += ", or choose another --split_time"
        raise InputError(
            f"{path}: none of {len(parts.test)} users has a history and a target with --split {settings.split}. "
            f"{remedy}."
        )
    return parts


def leave_last_out(histories: Histories, settings: SplitSettings) -> Parts:
    """Everyone is a test user; train.pkl has the lists without their last items."""
    return Parts(histories.lengths - 1, histories.lengths)


def split_at_time(histories: Histories, settings: SplitSettings) -> Parts:
    """train.pkl has what was before a time; test.pkl has that and one more item, of users with items on both sides."""
    cut = DEFAULT_SPLIT_TIME if settings.split_time is None else settings.split_time
    if 0 < cut < 1:
        position = int(cut * len(histories.times))
        cut = float(np.partition(histories.times, position)[position])
    users = np.repeat(np.arange(len(histories.lengths)), histories.lengths)
    before = np.bincount(users[histories.times < cut], minlength=len(histories.lengths))
    both = (before > 0) & (before < histories.lengths)
    first, at, last = map(date, (histories.times.min(), cut, histories.times.max()))
    print(f"split at {at} (the interactions are from {first} to {last})")
    return Parts(before, np.where(both, before + 1, 0))


def date(time: float) -> str:
    """Unix seconds as a readable date; as a number where no date has them."""
    try:
        return f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{time:g}"


def split_by_user(histories: Histories, settings: SplitSettings) -> Parts:
    """Whole lists; the test users are drawn at random among those with two items or more."""
    lengths = histories.lengths
    in_test = np.zeros(len(lengths), dtype=bool)
    eligible = np.flatnonzero(lengths >= SHORTEST)
    in_test[eligible[draw_test(len(eligible), settings.test_share, settings.seed)]] = True
    return Parts(np.where(in_test, 0, lengths), np.where(in_test, lengths, 0))


SPLITS = {"leave_last_out": leave_last_out, "time": split_at_time, "users": split_by_user}
