"""Several data sets merged into one: their histories and embeddings under item ids that do not clash."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.data import Sequences
from utils.datasets import (
    EMBEDDINGS,
    HISTORIES,
    MAPS,
    WHOLE,
    catalogs,
    check_encoded,
    check_ids,
    is_id,
    load_sequences,
    noted_encoder,
)
from utils.errors import InputError, shown
from utils.files import (
    MANIFEST,
    check_whole,
    content,
    identity,
    load_matrix,
    require_file,
    save_json,
    staged_directory,
    staged_set,
)
from utils.matrices import RowCopy, copy_rows, resumable_matrix
from utils.pickles import load_pickle, save_dict
from utils.whitening import WhitenedMatrix

REMEDY = "Make it with data_processing/data_process_1.py, import_dataset.py or make_dataset.py."
ENCODE = "Make it with data_processing/TextEncoder_batch.py or make_dataset.py."
AT_ONCE = 1 << 16  # histories that are lists at the same time
MOST_ITEMS = 1 << 31  # ids are int32 in the packed form
CHUNK = 16_384  # rows that are in memory at once


def named_directories(paths: list[str]) -> dict[str, Path]:
    """Data set name (the last part of its path) -> directory.

    Raises:
        InputError: a path that is no directory, a directory that does not hold what its dataset.json lists, or two of
            the same name.
    """
    named: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"--datasets: {path} is not a directory. {REMEDY}")
        check_whole(path / MANIFEST)
        name = path.resolve().name
        if name in named:
            raise InputError(
                f"--datasets: {named[name]} and {path} are both called {name!r}, "
                "by which item_id_maps.pkl tells data sets apart. Rename one of them."
            )
        named[name] = path
    return named


def check_histories_exist(directories: dict[str, Path], output: Path) -> None:
    """Raise InputError unless every data set has a train.pkl, and `output` is none of their directories."""
    for directory in directories.values():
        if output.is_dir() and directory.samefile(output):
            raise InputError(f"--output {output} is one of --datasets, whose train.pkl it would replace. Name another.")
        require_file(directory / HISTORIES, REMEDY)


def load_histories(path: Path, count: int) -> Sequences:
    """Load a pickled dict user -> list of one or more item ids below `count`.

    Raises:
        InputError: missing or damaged file, an empty history, or an id out of range; names the user.
    """
    histories = load_sequences(path, REMEDY, shortest=0)
    if not histories.lengths.all():
        user = histories.users[np.argmin(histories.lengths)]
        raise InputError(f"{path}, user {shown(user)}: the list is empty, expected one or more item ids. {REMEDY}")
    check_ids(histories, count, path, "the data set's items")
    return histories


def unlike_test(directory: Path, train: Sequences, test: Sequences) -> Sequences:
    """The histories of train.pkl that are not the beginning of the same user's in test.pkl; prints how many are."""
    in_test = dict(zip(test.users, test.lists(), strict=True))
    shared = {row: in_test[user] for row, user in enumerate(train.users) if user in in_test}
    lists = train.lists()
    again = [row for row, longer in shared.items() if longer[: len(lists[row])] == lists[row]]
    if again:
        print(
            f"{directory}: {len(again)} of {len(train)} users of train.pkl go on in test.pkl: read once, from test.pkl"
        )
    if len(again) < len(shared):
        print(
            f"{directory}: {len(shared) - len(again)} names in both train.pkl and test.pkl have other histories there: "
            "read as two users each"
        )
    return train.select(np.setdiff1d(np.arange(len(train)), again))


def load_item_texts(path: Path) -> dict[int, dict]:
    """Load a pickled dict item id -> dict of text fields.

    Raises:
        InputError: missing or damaged file, or an entry of another form; names the item.
    """
    texts = load_pickle(path, dict, REMEDY)
    for item, fields in texts.items():
        if not is_id(item) or item < 0 or not isinstance(fields, dict):
            raise InputError(
                f"{path}, item {shown(item)}: found {shown(fields)}, expected item id -> dict of text fields. {REMEDY}"
            )
    return texts


def count_items(directory: Path) -> int:
    """Number of items of a data set: the rows of its embeddings or, before these are made, the largest item id + 1."""
    if (directory / "item_text_embeddings.npy").is_file():
        check_encoded(directory / "item_text_embeddings.npy")
        return len(load_matrix(directory / "item_text_embeddings.npy", REMEDY))
    return count_ids(directory)


def count_ids(directory: Path) -> int:
    """Largest item id in the texts and histories of a data set, plus one: the rows that its embeddings must have.

    Raises:
        InputError: a damaged file, or an id of 2**31 or more.
    """
    largest = -1
    if (directory / "item_text_dict.pkl").is_file():
        largest = max(load_item_texts(directory / "item_text_dict.pkl"), default=-1)
    for name in ("train.pkl", "test.pkl"):
        if (directory / name).is_file():
            largest = max(largest, load_sequences(directory / name, REMEDY, shortest=0).items.max(initial=-1))
    if largest >= MOST_ITEMS:
        raise InputError(
            f"{directory}: the largest item id is {largest}, expected 0, 1, 2, … up to the number of items. Number the "
            "items again, for example with import_dataset.py."
        )
    return int(largest) + 1


def id_maps(counts: dict[str, int]) -> dict[str, np.ndarray]:
    """Data set name -> the merged ids of its items, (n,) int64; each data set gets a block of consecutive ids."""
    maps, offset = {}, 0
    for name, count in counts.items():
        maps[name] = np.arange(offset, offset + count, dtype=np.int64)
        offset += count
    return maps


def merge_histories(data_sets: Iterable[Sequences], maps: Iterable[np.ndarray]) -> Iterator[list[int]]:
    """Yield all histories with merged item ids, in the order of the data sets; one data set at a time is in memory."""
    for histories, id_map in zip(data_sets, maps, strict=True):
        for start in range(0, len(histories), AT_ONCE):
            part = histories.select(np.arange(start, min(start + AT_ONCE, len(histories))))
            yield from replace(part, items=id_map[part.items]).lists()


def draw_users(histories: Sequences, users: int | None, seed: int) -> Sequences:
    """Draw at most `users` histories at random, and keep their order; all of them where `users` is None."""
    if users is None or users >= len(histories):
        return histories
    return histories.select(np.sort(np.random.default_rng(seed).choice(len(histories), users, replace=False)))


def write_histories(
    output: Path,
    directories: dict[str, Path],
    data_sets: Iterable[Sequences],
    maps: dict[str, np.ndarray],
    empty: str,
    **notes: Any,
) -> Counter:
    """Write the merged histories as OUTPUT/train.pkl, and `maps` as item_id_maps.pkl; one data set is in memory.

    `notes` go into OUTPUT/dataset.json.

    Returns:
        How many "users" and "interactions" there are.

    Raises:
        InputError: there is no history; `empty` says what was expected.
    """
    counts = Counter()
    with staged_set(output, (HISTORIES, MAPS), catalogs=catalogs(directories), **notes) as staging:
        save_dict(staging / HISTORIES, enumerate(counted(merge_histories(data_sets, maps.values()), counts)))
        if not counts["users"]:
            raise InputError(f"--datasets {' '.join(map(str, directories.values()))}: {empty} {REMEDY}")
        save_dict(staging / MAPS, ((name, id_map.tolist()) for name, id_map in maps.items()))
    return counts


def note_whole_lists(directories: dict[str, Path]) -> dict[str, list[str]]:
    """The note of merged lists that have those of each train.pkl to their end; predict.py --blend asks for it."""
    return {WHOLE: [content(directory / HISTORIES) for directory in directories.values()]}


def counted(histories: Iterator[list[int]], counts: Counter) -> Iterator[list[int]]:
    """Yield the same histories, and count users and interactions."""
    for items in tqdm(histories, desc="histories", unit=" users"):
        counts["users"] += 1
        counts["interactions"] += len(items)
        yield items


def load_embeddings(directories: Iterable[Path]) -> tuple[dict[Path, np.ndarray], str | None]:
    """Memory-map the embeddings (n, E) of each data set; returns file -> matrix, and the name of their encoder.

    Raises:
        InputError: missing or damaged file, embeddings of other texts than the data set's, of different widths, or of
            different encoders.
    """
    paths = [directory / "item_text_embeddings.npy" for directory in directories]
    matrices = {path: load_matrix(path, ENCODE) for path in paths}
    for path in paths:
        check_encoded(path)
    first = paths[0]
    for path, matrix in matrices.items():
        if matrix.shape[1] != matrices[first].shape[1]:
            raise InputError(
                f"{path}: embeddings are {matrix.shape[1]} wide, {first} has {matrices[first].shape[1]}. "
                "Encode all data sets with one encoder (data_processing/TextEncoder_batch.py)."
            )
    return matrices, common_encoder(paths)


def common_encoder(paths: list[Path]) -> str | None:
    """Name of the encoder that made all embeddings, or None where no data set names one.

    The embeddings of two encoders cannot be compared, even if they have the same width. Encoders are the same if the
    last parts of their names or paths are.

    Raises:
        InputError: the data sets name different encoders.
    """
    known: dict[str, Path] = {}
    for path in paths:
        encoder = noted_encoder(path)
        if encoder and isinstance(encoder, str):
            known.setdefault(Path(encoder).name, path.with_suffix(".json"))
    if len(known) > 1:
        (one, one_path), (other, other_path) = list(known.items())[:2]
        raise InputError(
            f"{one_path} names the encoder {one}, {other_path} names {other}. Encode all data sets with one encoder "
            "(data_processing/TextEncoder_batch.py); if it is the same under two names, mend one of the two files."
        )
    return next(iter(known), None)


@contextlib.contextmanager
def merged_embeddings(
    output: Path, matrices: dict[Path, np.ndarray], maps: list[np.ndarray], dtype: str
) -> Iterator[str]:
    """Write row `id` of each matrix (n, E) to row `map[id]` of a new `.npy` (N, E), and yield its fingerprint.

    The file gets its name when the block ends without an error; a killed run resumes where it stopped.

    Raises:
        InputError: a matrix with more or fewer rows than its map, an embedding that is not finite, or a full disk.
    """
    for (path, matrix), id_map in zip(matrices.items(), maps, strict=True):
        if len(matrix) != len(id_map):
            raise InputError(
                f"{path} has {len(matrix)} rows, the data set has {len(id_map)} items. "
                "Run data_process_2.py and TextEncoder_batch.py again, so that both see the same items."
            )
    total, width = sum(map(len, maps)), next(iter(matrices.values())).shape[1]
    prepared = [type(matrix).__name__ for matrix in matrices.values()]
    job = {
        "from": [identity(path) for path in matrices],
        "prepared": prepared,
        "to": [[int(ids[0]), int(ids[-1])] for ids in maps],
    }
    with resumable_matrix(output, (total, width), dtype, job) as filling:
        copies = [
            RowCopy(f"{path} as {dtype}", matrix, targets=id_map)
            for (path, matrix), id_map in zip(matrices.items(), maps, strict=True)
        ]
        copy_rows(filling, copies, CHUNK, label="embeddings")
        yield filling.finish()


def write_embeddings(
    output: Path,
    directories: dict[str, Path],
    matrices: dict[Path, np.ndarray],
    encoder: str | None,
    maps: dict[str, np.ndarray],
    dtype: str,
) -> Path:
    """Write the merged matrix (N, E) as OUTPUT/all_item_text_embeddings.npy, and JSON beside it; returns its path.

    `matrices` and `encoder` are what `load_embeddings` returns of the same directories. OUTPUT has the item_id_maps.pkl
    with these `maps` already: the JSON notes its hash. Raises what `merged_embeddings` raises.
    """
    merged = output / EMBEDDINGS
    rows, width = sum(map(len, matrices.values())), next(iter(matrices.values())).shape[1]
    known = {"maps": content(output / MAPS), "catalogs": catalogs(directories)}
    metadata = {"encoder": encoder, "rows": rows, "width": width, **known}
    if any(isinstance(matrix, WhitenedMatrix) for matrix in matrices.values()):  # also where no encoder is known
        metadata["whitened"] = True
    in_order = [maps[name] for name in directories]
    with merged_embeddings(merged, matrices, in_order, dtype) as made, staged_directory(output) as staging:
        save_json(staging / f"{merged.stem}.json", metadata | {"files": {merged.suffix: made}})
    print(f"{merged}: {rows} items, {width} wide, {dtype}")
    return merged
