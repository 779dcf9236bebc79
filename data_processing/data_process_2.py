"""Merge the train.pkl of several data sets into one, with item ids that do not clash.

    python data_processing/data_process_2.py --datasets data/books data/toys data/baby --output data/pre_train

Writes to OUTPUT train.pkl (dict user -> merged item ids, users numbered from 0) and item_id_maps.pkl (dict data set
name -> list: of each own item id the merged one). Every item of every data set is kept, also those that only its test
users have: they are candidates too, and a data set's ids stay one block. dataset.json lists both files with hashes, and
those of the data sets' texts. One data set at a time is in memory.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

from data_processing.parts import merging
from utils.cli import parser, run
from utils.datasets import HISTORIES


def main() -> None:
    """Merge the histories and number the items of all data sets, and write both."""
    flags = parser(__doc__)
    flags.add_argument("--datasets", nargs="+", required=True, metavar="DIR", help="data set directories")
    flags.add_argument("--output", default="./data/pre_train", metavar="DIR", help="directory to write to")
    args = flags.parse_args()

    output = Path(args.output)
    directories = merging.named_directories(args.datasets)
    merging.check_histories_exist(directories, output)
    maps = merging.id_maps({name: merging.count_items(directory) for name, directory in directories.items()})
    data_sets = (merging.load_histories(directories[name] / HISTORIES, len(id_map)) for name, id_map in maps.items())
    notes = merging.note_whole_lists(directories)
    counts = merging.write_histories(output, directories, data_sets, maps, "no train.pkl has a user.", **notes)
    items = sum(map(len, maps.values()))
    print(f"{output}: {counts['users']} users, {counts['interactions']} interactions, {items} items")


if __name__ == "__main__":
    run(main)
