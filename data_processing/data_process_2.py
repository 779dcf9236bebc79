"""Merge the train.pkl of several data sets into one, with item ids that do not clash.

    python data_processing/data_process_2.py --datasets data/books data/toys data/baby --output data/pre_train

Writes to OUTPUT train.pkl (dict user -> merged item ids, users numbered from 0) and item_id_maps.pkl (dict data set
name -> int64 array, own item id -> merged item id). Every item of every data set is kept, also those that only its test
users have: they are candidates too, and a data set's ids stay one block.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from utils.cli import parser, run
from utils.errors import InputError
from utils.files import load_pickle, save_pickle

REMEDY = "Make it with data_processing/data_process_1.py or make_dataset.py."


def main() -> None:
    """Parse, merge, write."""
    flags = parser(__doc__)
    flags.add_argument("--datasets", nargs="+", required=True, metavar="DIR", help="data set directories")
    flags.add_argument("--output", default="./data/pre_train", metavar="DIR", help="directory to write to")
    args = flags.parse_args()

    directories = named_directories(args.datasets)
    histories = [load_histories(directory / "train.pkl") for directory in directories.values()]
    maps = id_maps({name: count_items(directory) for name, directory in directories.items()})
    train = merge_histories(histories, list(maps.values()))

    output = Path(args.output)
    save_pickle(output / "train.pkl", train)
    save_pickle(output / "item_id_maps.pkl", maps)
    items = sum(map(len, maps.values()))
    print(f"{output}: {len(train)} users, {sum(map(len, train.values()))} interactions, {items} items")


def named_directories(paths: list[str]) -> dict[str, Path]:
    """Data set name (the directory's own name) -> directory.

    Raises:
        InputError: not a directory, or two of the same name.
    """
    named: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"--datasets: {path} is not a directory. {REMEDY}")
        name = path.resolve().name
        if name in named:
            raise InputError(
                f"--datasets: {named[name]} and {path} are both called {name!r}, "
                "by which item_id_maps.pkl tells data sets apart. Rename one of them."
            )
        named[name] = path
    return named


def load_histories(path: Path) -> dict:
    """A pickled dict user -> list of item ids, checked: every history has an item, every item is an id of 0 or more.

    Raises:
        InputError: missing or damaged file, or a history that is none; names the user.
    """
    histories = load_pickle(path, dict, REMEDY)
    for user, items in histories.items():
        ids = np.asarray(items) if isinstance(items, list | tuple | np.ndarray) else np.empty(0)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu" or ids.min() < 0:
            raise InputError(
                f"{path}, user {user!r}: found {str(items)[:60]}, expected a list of one or more item ids. {REMEDY}"
            )
    return histories


def load_item_texts(path: Path) -> dict[int, dict]:
    """A pickled dict item id -> dict of text fields, checked.

    Raises:
        InputError: missing or damaged file, or an entry of another form; names the item.
    """
    texts = load_pickle(path, dict, REMEDY)
    for item, fields in texts.items():
        if not isinstance(item, int | np.integer) or item < 0 or not isinstance(fields, dict):
            raise InputError(
                f"{path}, item {item!r}: found {str(fields)[:60]!r}, expected item id -> dict of text fields. {REMEDY}"
            )
    return texts


def count_items(directory: Path) -> int:
    """One more than the largest item id in a data set's texts and histories: the rows its embeddings must have."""
    largest = -1
    if (directory / "item_text_dict.pkl").is_file():
        largest = max(load_item_texts(directory / "item_text_dict.pkl"), default=-1)
    for name in ("train.pkl", "test.pkl"):
        if (directory / name).is_file():
            histories = load_histories(directory / name)
            largest = max(largest, max(map(max, histories.values()), default=-1))
    return int(largest) + 1


def id_maps(counts: dict[str, int]) -> dict[str, np.ndarray]:
    """Items of each data set -> its merged ids, (n,) int64: one block after the other."""
    maps, offset = {}, 0
    for name, count in counts.items():
        maps[name] = np.arange(offset, offset + count, dtype=np.int64)
        offset += count
    return maps


def merge_histories(data_sets: list[dict], maps: list[np.ndarray]) -> dict[int, list[int]]:
    """All histories with merged item ids; users numbered from 0 in the order of the data sets."""
    with tqdm(total=sum(map(len, data_sets)), desc="histories", unit=" users") as progress:
        merged: dict[int, list[int]] = {}
        for histories, id_map in zip(data_sets, maps, strict=True):
            for items in histories.values():
                merged[len(merged)] = id_map[items].tolist()
                progress.update()
    return merged


if __name__ == "__main__":
    run(main)
