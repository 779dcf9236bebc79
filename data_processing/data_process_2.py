"""Merge the train.pkl of several data sets into one, with item ids that do not clash.

    python data_processing/data_process_2.py --datasets data/books data/toys data/baby --output data/pre_train

Writes to OUTPUT train.pkl (dict user -> merged item ids, users numbered from 0) and item_id_maps.pkl (dict data set
name -> list: of each own item id the merged one). Every item of every data set is kept, also those that only its test
users have: they are candidates too, and a data set's ids stay one block. dataset.json lists both files with hashes, and
those of the data sets' texts. One data set at a time is in memory.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
from tqdm import tqdm

from utils.cli import parser, run
from utils.data import Sequences
from utils.datasets import HISTORIES, MAPS, catalogs, check_encoded, check_ids, is_id, load_sequences
from utils.errors import InputError, shown
from utils.files import MANIFEST, check_whole, load_matrix, require_file, staged_set
from utils.pickles import load_pickle, save_dict

REMEDY = "Make it with data_processing/data_process_1.py, import_dataset.py or make_dataset.py."
AT_ONCE = 1 << 16  # histories turned into lists
MOST_ITEMS = 1 << 31  # ids are int32 in the packed form


def main() -> None:
    """Parse, merge, write."""
    flags = parser(__doc__)
    flags.add_argument("--datasets", nargs="+", required=True, metavar="DIR", help="data set directories")
    flags.add_argument("--output", default="./data/pre_train", metavar="DIR", help="directory to write to")
    args = flags.parse_args()

    output = Path(args.output)
    directories = named_directories(args.datasets)
    for directory in directories.values():
        if output.is_dir() and directory.samefile(output):
            raise InputError(f"--output {output} is one of --datasets, whose train.pkl it would replace. Name another.")
        require_file(directory / "train.pkl", REMEDY)
    maps = id_maps({name: count_items(directory) for name, directory in directories.items()})
    data_sets = (load_histories(directories[name] / "train.pkl", len(id_map)) for name, id_map in maps.items())
    counts = Counter()
    with staged_set(output, (HISTORIES, MAPS), catalogs=catalogs(directories)) as staging:
        save_dict(staging / HISTORIES, enumerate(counted(merge_histories(data_sets, maps.values()), counts)))
        if not counts["users"]:
            raise InputError(f"--datasets {' '.join(args.datasets)}: no train.pkl has a user. {REMEDY}")
        save_dict(staging / MAPS, ((name, id_map.tolist()) for name, id_map in maps.items()))
    items = sum(map(len, maps.values()))
    print(f"{output}: {counts['users']} users, {counts['interactions']} interactions, {items} items")


def counted(histories: Iterator[list[int]], counts: Counter) -> Iterator[list[int]]:
    """The same histories; adds them up on their way."""
    for items in tqdm(histories, desc="histories", unit=" users"):
        counts["users"] += 1
        counts["interactions"] += len(items)
        yield items


def named_directories(paths: list[str]) -> dict[str, Path]:
    """Data set name (the directory's own name) -> directory.

    Raises:
        InputError: not a directory, one that does not hold what it lists, or two of the same name.
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


def load_histories(path: Path, count: int) -> Sequences:
    """A pickled dict user -> list of item ids below `count`, each list with an item or more.

    Raises:
        InputError: missing or damaged file, or a history that is none; names the user.
    """
    histories = load_sequences(path, REMEDY, shortest=0)
    if not histories.lengths.all():
        user = histories.users[np.argmin(histories.lengths)]
        raise InputError(f"{path}, user {shown(user)}: the list is empty, expected one or more item ids. {REMEDY}")
    check_ids(histories, count, path, "the data set's items")
    return histories


def load_item_texts(path: Path) -> dict[int, dict]:
    """A pickled dict item id -> dict of text fields, checked.

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
    """Items of a data set: the rows of its embeddings, or, before these are made, one more than its largest item id.

    Raises:
        InputError: a damaged file, or embeddings of other texts than the data set's.
    """
    if (directory / "item_text_embeddings.npy").is_file():
        check_encoded(directory / "item_text_embeddings.npy")
        return len(load_matrix(directory / "item_text_embeddings.npy", REMEDY))
    return count_ids(directory)


def count_ids(directory: Path) -> int:
    """One more than the largest item id in a data set's texts and histories: the rows its embeddings must have.

    Raises:
        InputError: a damaged file, or an id that is no row of anything.
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
    """Items of each data set -> its merged ids, (n,) int64: one block after the other."""
    maps, offset = {}, 0
    for name, count in counts.items():
        maps[name] = np.arange(offset, offset + count, dtype=np.int64)
        offset += count
    return maps


def merge_histories(data_sets: Iterable[Sequences], maps: Iterable[np.ndarray]) -> Iterator[list[int]]:
    """All histories with merged item ids, in the order of the data sets, of which one at a time is in memory."""
    for histories, id_map in zip(data_sets, maps, strict=True):
        for start in range(0, len(histories), AT_ONCE):
            part = histories.select(np.arange(start, min(start + AT_ONCE, len(histories))))
            yield from replace(part, items=id_map[part.items]).lists()


if __name__ == "__main__":
    run(main)
