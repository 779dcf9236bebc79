"""The check of import_dataset.py --check: everything that is wrong with a data set directory, found at once."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_processing.parts.splits import LONGEST_PIECE
from decoder import check_width
from utils.data import cumulate
from utils.datasets import check_encoded, is_id, is_list, is_time, whole_numbers
from utils.errors import InputError, shown
from utils.files import MANIFEST, check_whole, forget_pages, load_matrix, read_json, read_jsonl
from utils.pickles import load_pickle

REMEDY = "Make it again (import_dataset.py or make_dataset.py), or fetch it again."
SHORTEST = {"train": 1, "test": 2, "cold_train": 2, "cold_test": 2}  # items of a list
EXAMPLES = 3  # users, items or rows that are named of each kind of fault
CHUNK = 1 << 14  # rows of embeddings that are in memory at once

Lists = dict[Any, list[int]]


class Report:
    """What the check has found: faults, and remarks on what may be intended; one line for each kind."""

    def __init__(self):
        self.faults: list[str] = []
        self.remarks: list[str] = []
        self.summary = ""

    def fault(self, path: Path, what: str, found: Iterable[Any], lines: list[str] | None = None) -> None:
        """Add a fault with the first users, items or rows that have it, if there are any."""
        found = list(found)
        if found:
            more = f" and {len(found) - EXAMPLES} more" if len(found) > EXAMPLES else ""
            line = f"{path}: {what}: {', '.join(map(str, found[:EXAMPLES]))}{more}"
            (self.faults if lines is None else lines).append(line)

    def remark(self, path: Path, what: str, found: Iterable[Any]) -> None:
        """Add a remark with the first users, items or rows that it is about, if there are any."""
        self.fault(path, what, found, self.remarks)

    def attempt(self, load: Callable, *arguments: Any) -> Any:
        """Call `load` and return its result; where it raises InputError, add a fault and return None."""
        try:
            return load(*arguments)
        except InputError as error:
            self.faults.append(str(error))
            return None


def check_directory(folder: Path) -> Report:
    """Check all files of a data set directory, the release's and the data scripts' own; it must be a directory."""
    if not folder.is_dir():
        raise InputError(f"--check {folder} is not a directory. Name one with test.pkl and item_text_embeddings.npy.")
    report = Report()
    report.attempt(check_whole, folder / MANIFEST)
    count = check_embeddings(report, folder / "item_text_embeddings.npy")
    lists = {name: check_lists(report, folder / f"{name}.pkl", shortest, count) for name, shortest in SHORTEST.items()}
    if lists["train"] == lists["test"] == {}:
        report.fault(folder, "neither train.pkl nor test.pkl has a user", ["nobody"])
    for name in ("train", "test"):
        check_pieces(report, folder / f"cold_{name}.pkl", lists[f"cold_{name}"], lists[name])
    check_targets(report, folder / "cold_test.pkl", lists)
    if (folder / "test_times.pkl").is_file():
        check_test_times(report, folder / "test_times.pkl", lists["test"])
    check_texts(report, folder, count)
    if (folder / "item_ids.jsonl").is_file():
        check_names(report, folder / "item_ids.jsonl", count)
    for path in leftovers(folder):
        report.remark(path, "left by a run that was killed; unless one is at work, delete", ["it"])
    users = {name: 0 if lists[name] is None else len(lists[name]) for name in ("train", "test")}
    report.summary = f"{users['train']} train users, {users['test']} test users, {count} items"
    return report


def check_embeddings(report: Report, path: Path) -> int | None:
    """Check width, numbers and metadata of the embeddings; returns the number of rows, None if they cannot be read."""
    matrix = report.attempt(load_matrix, path, REMEDY)
    if matrix is None:
        return None
    report.attempt(check_width, matrix.shape[1], path)
    invalid, zero = [], 0
    for start in range(0, len(matrix), CHUNK):
        with np.errstate(over="ignore"):
            rows = matrix[start : start + CHUNK].astype(np.float32)  # as all programs here read them
        invalid += (start + np.flatnonzero(~np.isfinite(rows).all(axis=1))).tolist()
        zero += int((~rows.any(axis=1)).sum())
        forget_pages(matrix)
    report.fault(path, f"{len(invalid)} embeddings with NaN or infinity", [f"row {row}" for row in invalid])
    if zero == len(matrix):
        report.fault(path, "all embeddings are zero: no item can be recommended. Encode the texts", ["every row"])
    elif zero:
        report.remark(path, "items without text, which are not recommended", [f"{zero} zero rows"])
    check_metadata(report, path, matrix.shape)
    return len(matrix)


def check_metadata(report: Report, path: Path, shape: tuple[int, int]) -> None:
    """Check the JSON beside the embeddings, if there is one."""
    metadata_path = path.with_suffix(".json")
    metadata = report.attempt(read_json, metadata_path) if metadata_path.is_file() else None
    if metadata is None:
        return
    for name, found in zip(("rows", "width"), shape, strict=True):
        if metadata.get(name, found) != found:
            report.fault(metadata_path, f"{name} is {metadata[name]!r}, the matrix has", [found])
    report.attempt(check_encoded, path)


def check_lists(report: Report, path: Path, shortest: int, count: int | None) -> Lists | None:
    """Check a pickled dict user -> list of `shortest` or more item ids, below `count` where that is known.

    Returns the lists that consist of whole numbers, or None if the file cannot be read.
    """
    users = report.attempt(load_pickle, path, dict, REMEDY)
    if users is None:
        return None
    other = (_of(user) for user, items in users.items() if not is_list(items))
    report.fault(path, "expected a list of item ids, found another type", other)
    lists = {user: list(items) for user, items in users.items() if is_list(items)}
    if whole_numbers(list(chain.from_iterable(lists.values()))) is None:
        invalid = {user: items for user, items in lists.items() if not all(map(is_id, items))}
        report.fault(path, "item ids that are no whole numbers", map(_of, invalid))
        lists = {user: items for user, items in lists.items() if user not in invalid}
    report.fault(
        path,
        f"lists of fewer than {shortest} item(s){' (a history and a target)' if shortest == 2 else ''}",
        (_of(user) for user, items in lists.items() if len(items) < shortest),
    )
    if shortest == 1:
        alone = (_of(user) for user, items in lists.items() if len(items) == 1)
        report.remark(path, "lists of one item, which pre_train.py takes only with --drop_short", alone)
    if path.stem == "test" and not users:
        report.remark(path, "there is nobody to recommend to", ["no user"])
    check_range(report, path, lists, count)
    return lists


def check_range(report: Report, path: Path, lists: Lists, count: int | None) -> None:
    """Check that all item ids are 0 or more and below `count`, if that is known."""
    items = whole_numbers(list(chain.from_iterable(lists.values())))
    offsets = cumulate(np.fromiter(map(len, lists.values()), np.int64, len(lists)))
    keys = list(lists)

    def owners(wrong: np.ndarray) -> Iterator[str]:
        for position in np.flatnonzero(wrong):
            yield f"{_of(keys[np.searchsorted(offsets, position, side='right') - 1])} has {items[position]}"

    report.fault(path, "negative item ids", owners(items < 0))
    if count is not None:
        what = f"item ids without a row in item_text_embeddings.npy, which has rows 0 to {count - 1}"
        report.fault(path, what, owners(items >= count))


def check_pieces(report: Report, path: Path, pieces: Lists | None, whole: Lists | None) -> None:
    """Check that cold-start lists are contiguous pieces, of 2 to 4 items, of the same users' lists."""
    if pieces is None or whole is None:
        return
    long = (_of(user) for user, items in pieces.items() if len(items) > LONGEST_PIECE)
    report.fault(path, f"lists of more than {LONGEST_PIECE} items", long)
    if not whole:
        return  # a directory may have the cold-start lists alone
    owner = path.name.removeprefix("cold_")
    report.fault(path, f"users that are not in {owner}", (_of(user) for user in pieces if user not in whole))
    loose = (_of(user) for user, items in pieces.items() if user in whole and not _contains(whole[user], items))
    report.fault(path, f"lists that are no piece of the same user's list in {owner}", loose)


def check_targets(report: Report, path: Path, lists: dict[str, Lists | None]) -> None:
    """Check that the target of a cold-start list is not in the same user's list in train.pkl.

    Where train.pkl has a test list without its last item, only a piece that ends with that item has an unknown target.
    """
    train, test, pieces = (lists[name] or {} for name in ("train", "test", "cold_test"))
    known = (
        _of(user)
        for user, piece in pieces.items()
        if user in train and train[user] == test.get(user, [])[:-1] and test[user][-len(piece) :] != piece
    )
    report.remark(path, "targets that the same user's list in train.pkl has", known)


def _contains(whole: list[int], piece: list[int]) -> bool:
    return any(whole[start : start + len(piece)] == piece for start in range(len(whole) - len(piece) + 1))


def check_test_times(report: Report, path: Path, lists: Lists | None) -> None:
    """Check the times of each test user's items: one for each item, finite and in order."""
    times = report.attempt(load_pickle, path, dict, REMEDY)
    if times is None or lists is None:
        return
    report.fault(path, "test users without times", (_of(user) for user in lists if user not in times))
    report.fault(path, "users that are not in test.pkl", (_of(user) for user in times if user not in lists))
    shared = {user: times[user] for user in lists if user in times}
    invalid = {user for user, listed in shared.items() if not is_list(listed) or not all(map(is_time, listed))}
    report.fault(path, "times that are no finite numbers", map(_of, invalid))
    shared = {user: listed for user, listed in shared.items() if user not in invalid}
    unequal = (
        f"{_of(user)} has {len(listed)} times and {len(lists[user])} items"
        for user, listed in shared.items()
        if len(listed) != len(lists[user])
    )
    report.fault(path, "not one time for each item", unequal)
    falling = (_of(user) for user, listed in shared.items() if any(late < early for early, late in pairwise(listed)))
    report.fault(path, "times that go back", falling)


def check_texts(report: Report, folder: Path, count: int | None) -> None:
    """Check item_text_dict.pkl, a pickled dict item id -> dict of text fields."""
    path = folder / "item_text_dict.pkl"
    texts = report.attempt(load_pickle, path, dict, REMEDY)
    if texts is None:
        return
    unknown = (shown(item) for item in texts if not is_id(item) or item < 0 or (count is not None and item >= count))
    report.fault(path, "texts of items that are not among the rows of item_text_embeddings.npy", unknown)
    invalid = (
        f"item {shown(item)} ({type(fields).__name__})"
        for item, fields in texts.items()
        if not isinstance(fields, dict)
    )
    report.fault(path, "texts that are no dicts of fields", invalid)


def check_names(report: Report, path: Path, count: int | None) -> None:
    """Check item_ids.jsonl, which has the original name of each item, in the order of the ids."""
    lines = report.attempt(lambda: list(read_jsonl(path, REMEDY)))
    if lines is None:
        return
    wrong = (f"line {line}" for item, (line, record) in enumerate(lines) if record.get("id") != item)
    report.fault(path, "lines that are not in the order of the ids", wrong)
    if count not in (None, len(lines)):
        report.fault(path, f"{len(lines)} items, item_text_embeddings.npy has", [count])


def leftovers(folder: Path) -> list[Path]:
    """Hidden files that killed runs have left in a directory and beside it."""
    folder = folder.resolve()
    beside = [path for path in folder.parent.glob(".*") if path.name.startswith(f".{folder.name}.")]
    return sorted(path for path in (*folder.glob(".*"), *beside) if ".partial" in path.name or ".duckdb" in path.name)


def _of(user: Any) -> str:
    return f"user {shown(user)}"
