"""Merge the train.pkl of several data sets into one, with item ids that do not clash.

    python data_processing/data_process_2.py --datasets data/books data/toys data/baby --output data/pre_train

Writes to OUTPUT train.pkl (dict user -> merged item ids, users numbered from 0) and item_id_maps.pkl (dict data set
name -> list: of each own item id the merged one). Every item of every data set is kept, also those that only its test
users have: they are candidates too, and a data set's ids stay one block. dataset.json lists both files with hashes, and
those of the data sets' texts. One data set at a time is in memory.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

from tqdm import tqdm

from data_processing.parts import merging
from utils.cli import parser, run
from utils.datasets import HISTORIES, MAPS, catalogs
from utils.errors import InputError
from utils.files import require_file, staged_set
from utils.pickles import save_dict


def main() -> None:
    """Merge the histories and number the items of all data sets, and write both."""
    flags = parser(__doc__)
    flags.add_argument("--datasets", nargs="+", required=True, metavar="DIR", help="data set directories")
    flags.add_argument("--output", default="./data/pre_train", metavar="DIR", help="directory to write to")
    args = flags.parse_args()

    output = Path(args.output)
    directories = merging.named_directories(args.datasets)
    for directory in directories.values():
        if output.is_dir() and directory.samefile(output):
            raise InputError(f"--output {output} is one of --datasets, whose train.pkl it would replace. Name another.")
        require_file(directory / "train.pkl", merging.REMEDY)
    maps = merging.id_maps({name: merging.count_items(directory) for name, directory in directories.items()})
    data_sets = (merging.load_histories(directories[name] / "train.pkl", len(id_map)) for name, id_map in maps.items())
    counts = Counter()
    with staged_set(output, (HISTORIES, MAPS), catalogs=catalogs(directories)) as staging:
        save_dict(staging / HISTORIES, enumerate(counted(merging.merge_histories(data_sets, maps.values()), counts)))
        if not counts["users"]:
            raise InputError(f"--datasets {' '.join(args.datasets)}: no train.pkl has a user. {merging.REMEDY}")
        save_dict(staging / MAPS, ((name, id_map.tolist()) for name, id_map in maps.items()))
    items = sum(map(len, maps.values()))
    print(f"{output}: {counts['users']} users, {counts['interactions']} interactions, {items} items")


def counted(histories: Iterator[list[int]], counts: Counter) -> Iterator[list[int]]:
    """Yield the same histories, and count users and interactions."""
    for items in tqdm(histories, desc="histories", unit=" users"):
        counts["users"] += 1
        counts["interactions"] += len(items)
        yield items


if __name__ == "__main__":
    run(main)
