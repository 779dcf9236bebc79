"""Put the embeddings of several data sets into one matrix, in the order of their merged item ids.

    python data_processing/pre_train_data_process.py --datasets data/books data/toys data/baby --output data/pre_train

Reads item_text_embeddings.npy of each data set and OUTPUT/item_id_maps.pkl (from data_process_2.py, with the same
--datasets); writes OUTPUT/all_item_text_embeddings.npy (N, E) and all_item_text_embeddings.json (encoder, rows, width).
The matrix is written through a memory map: it may be larger than memory. A run that was killed resumes where it
stopped.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np

from data_processing.parts.merging import load_embeddings, named_directories, write_embeddings
from utils.cli import parser, run
from utils.datasets import MAPS, catalogs, whole_numbers
from utils.errors import InputError
from utils.files import MANIFEST, check_whole, read_json
from utils.pickles import load_pickle

MAPS_REMEDY = "Run data_processing/data_process_2.py with the same --datasets and --output first."


def main() -> None:
    """Check that maps and embeddings are of the same items, and merge the embeddings."""
    flags = parser(__doc__)
    flags.add_argument("--datasets", nargs="+", required=True, metavar="DIR", help="data set directories")
    flags.add_argument("--output", default="./data/pre_train", metavar="DIR", help="where item_id_maps.pkl lies")
    flags.add_argument("--dtype", choices=("float32", "float16", "float64"), default="float32", help="of the matrix")
    args = flags.parse_args()

    output = Path(args.output)
    check_whole(output / MANIFEST)
    directories = named_directories(args.datasets)
    maps = load_id_maps(output / MAPS, list(directories))
    matrices, encoder = load_embeddings(directories.values())
    known = catalogs(directories)
    if (output / MANIFEST).is_file() and read_json(output / MANIFEST).get("catalogs", known) != known:
        raise InputError(f"{output / MAPS} is of other items than {' '.join(args.datasets)} have now. {MAPS_REMEDY}")
    write_embeddings(output, directories, matrices, encoder, maps, args.dtype)


def load_id_maps(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Load data set name -> merged ids (n,) int64, which must be the data sets of `names` and together have every id.

    Raises:
        InputError: missing or damaged file, maps of other data sets, or ids with gaps.
    """
    loaded = load_pickle(path, dict, MAPS_REMEDY)
    if set(loaded) != set(names):
        raise InputError(f"{path} is for {list(loaded)}, --datasets names {names}. {MAPS_REMEDY}")
    maps = {name: whole_numbers(ids) if isinstance(ids, list) else ids for name, ids in loaded.items()}
    for name, ids in maps.items():
        if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind != "i":
            raise InputError(
                f"{path}, {name}: found {str(loaded[name])[:60]}, expected a list of whole numbers. {MAPS_REMEDY}"
            )
    merged = np.sort(np.concatenate(list(maps.values())))
    if not np.array_equal(merged, np.arange(len(merged))):
        raise InputError(f"{path}: the merged ids are not 0 to {len(merged) - 1}, each once. {MAPS_REMEDY}")
    return maps


if __name__ == "__main__":
    run(main)
