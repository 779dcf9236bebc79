"""Histories from DuckDB to a data set directory: lists under the users' names, cold-start pieces, names of items."""

import argparse
import datetime
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_processing.parts.tables import Tables
from utils.cli import seed
from utils.data import Sequences, cumulate, spans
from utils.errors import InputError
from utils.files import atomic_write
from utils.pickles import save_dict

SHORTEST_PIECE, LONGEST_PIECE = 2, 4  # items of a cold-start history, its target included
AT_ONCE = 1 << 16  # histories turned into lists
DEFAULT_SPLIT_TIME = 0.9  # share of the interactions
SHORTEST = 2  # items of a list: a history and a target


class Histories(NamedTuple):
    """What the users did, in time order, one user after another."""

    items: np.ndarray  # (interactions,) int32
    times: np.ndarray | None  # (interactions,) float64 seconds, where they are known
    offsets: np.ndarray  # (U + 1,) int64

    @property
    def lengths(self) -> np.ndarray:
        """(U,) int64 items of each user."""
        return np.diff(self.offsets)


def save_histories(
    folder: Path, tables: Tables, histories: Histories, parts: tuple[np.ndarray, np.ndarray], seed: int, last: bool
) -> None:
    """Write train.pkl, test.pkl, their cold-start pieces, item_ids.jsonl and, where times are known, test_times.pkl.

    Args:
        folder: to write to.
        tables: with the tables `users` and `items`, which have names and ids.
        histories: of all users.
        parts: (U,) int64 each, how many items, from the first on, of each user's train.pkl and test.pkl have.
        seed: of the pieces.
        last: whether the last items of the test lists are hidden, so that only pieces with these have unknown targets.
    """
    for draw, (name, lengths) in enumerate(zip(("train", "test"), parts, strict=True), start=1):
        save_dict(folder / f"{name}.pkl", lists(tables, histories, histories.items, lengths))
        whole = lists(tables, histories, histories.items, lengths)
        pieces = cold_pieces(whole, np.random.default_rng((seed, draw)), last and name == "test")
        save_dict(folder / f"cold_{name}.pkl", pieces)
    if histories.times is not None:
        save_dict(folder / "test_times.pkl", lists(tables, histories, histories.times, parts[1]))
    with atomic_write(folder / "item_ids.jsonl", "w") as file:
        for item, name in enumerate(names(tables, "items")):
            file.write(json.dumps({"id": item, "item": name}, ensure_ascii=False) + "\n")


def lists(tables: Tables, histories: Histories, values: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[Any, list]]:
    """Name and the first values of each user who has any: so many of (interactions,) `values` as (U,) `lengths` say."""

    def prefixes() -> Iterator[list]:
        rows = np.flatnonzero(lengths)
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            taken = values[spans(histories.offsets[part], lengths[part])]
            yield from Sequences(None, taken, cumulate(lengths[part])).lists()

    return zip(itertools.compress(names(tables, "users"), lengths > 0), prefixes(), strict=True)


def names(tables: Tables, name: str) -> Iterator[int | str]:
    """Original names in the order of the new ids, of the table `users` or `items`; numbers where all of them are."""
    whole = tables.value(f"SELECT bool_and(regexp_full_match(name, '0|-?[1-9][0-9]{{0,17}}')) FROM {name}")
    for (found,) in tables.rows(f"SELECT name FROM {name} ORDER BY id"):
        yield int(found) if whole else found


def cold_pieces(
    histories: Iterable[tuple[Any, list[int]]], random: np.random.Generator, last: bool = False
) -> Iterator[tuple[Any, list[int]]]:
    """Of each user's history a contiguous piece of 2 to 4 items, length and place drawn as in the release.

    With `last` it is the end of the history. One of fewer than two items has no such piece and is left out.
    """
    for user, items in histories:
        if len(items) < SHORTEST_PIECE:
            continue
        length = int(random.integers(SHORTEST_PIECE, min(LONGEST_PIECE, len(items)) + 1))
        start = int(random.integers(max(0, len(items) - LONGEST_PIECE) + 1))
        yield user, items[-length:] if last else items[start : start + length]


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


def draw_test(users: int, test_share: float, seed: int) -> np.ndarray:
    """(users,) bool: the share of the users, drawn at random, that go to test.pkl."""
    in_test = np.zeros(users, dtype=bool)
    in_test[np.random.default_rng(seed).permutation(users)[: round(test_share * users)]] = True
    return in_test


def split(histories: Histories, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """How many items of each user's list train.pkl and test.pkl have, 0 or two and more: (U,) int64 each.

    Raises:
        InputError: nobody is left to test, or, where --test_share is 0, to train on.
    """
    train, test = (np.where(lengths < SHORTEST, 0, lengths) for lengths in SPLITS[args.split](histories, args))
    if not test.any() and (args.split != "users" or not train.any()):
        remedy = "Give users with longer histories"
        if args.split == "time":
            remedy += ", or choose another --split_time"
        raise InputError(
            f"{args.interactions}: none of {len(test)} users has a history and a target with --split {args.split}. "
            f"{remedy}."
        )
    return train, test


def leave_last_out(histories: Histories, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """How many items, from the first on, of each user's go to train.pkl and to test.pkl: (U,) int64 each."""
    return histories.lengths - 1, histories.lengths


def split_at_time(histories: Histories, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The same: what was before a time; and that and one more item, of users with items on both sides.

    Raises:
        InputError: there are no such users.
    """
    cut = DEFAULT_SPLIT_TIME if args.split_time is None else args.split_time
    if 0 < cut < 1:
        place = int(cut * len(histories.times))
        cut = float(np.partition(histories.times, place)[place])
    users = np.repeat(np.arange(len(histories.lengths)), histories.lengths)
    before = np.bincount(users[histories.times < cut], minlength=len(histories.lengths))
    both = (before > 0) & (before < histories.lengths)
    first, at, last = map(date, (histories.times.min(), cut, histories.times.max()))
    print(f"split at {at} (the interactions are from {first} to {last})")
    return before, np.where(both, before + 1, 0)


def date(time: float) -> str:
    """Unix seconds for people to read."""
    try:
        return f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{time:g}"


def split_users(histories: Histories, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The same: whole lists, of users drawn at random among those with two items or more."""
    lengths = histories.lengths
    in_test = np.zeros(len(lengths), dtype=bool)
    eligible = np.flatnonzero(lengths >= SHORTEST)
    in_test[eligible[draw_test(len(eligible), args.test_share, args.seed)]] = True
    return np.where(in_test, 0, lengths), np.where(in_test, lengths, 0)


SPLITS = {"leave_last_out": leave_last_out, "time": split_at_time, "users": split_users}
