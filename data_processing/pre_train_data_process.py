"""Put the embeddings of several data sets into one matrix, in the order of their merged item ids.

    python data_processing/pre_train_data_process.py --datasets data/books data/toys data/baby --output data/pre_train

Reads item_text_embeddings.npy of each data set and OUTPUT/item_id_maps.pkl (from data_process_2.py, with the same
--datasets); writes OUTPUT/all_item_text_embeddings.npy (N, E) and all_item_text_embeddings.json (encoder, rows, width).
The matrix is written through a memory map: it may be larger than memory. A run that was killed goes on where it
stopped.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
from tqdm import tqdm

from data_processing.data_process_2 import named_directories
from utils.cli import parser, run
from utils.data import check_finite
from utils.datasets import EMBEDDINGS, MAPS, catalogs, check_encoded, noted_encoder, whole_numbers
from utils.errors import InputError
from utils.files import (
    MANIFEST,
    check_whole,
    content,
    forget_pages,
    identity,
    load_matrix,
    read_json,
    save_json,
    staged_directory,
)
from utils.matrices import resumable_matrix
from utils.pickles import load_pickle

CHUNK = 16_384  # rows copied at once
REMEDY = "Make it with data_processing/TextEncoder_batch.py or make_dataset.py."
MAPS_REMEDY = "Run data_processing/data_process_2.py with the same --datasets and --output first."


def main() -> None:
    """Parse, check that all fits, merge."""
    flags = parser(__doc__)
    flags.add_argument("--datasets", nargs="+", required=True, metavar="DIR", help="data set directories")
    flags.add_argument("--output", default="./data/pre_train", metavar="DIR", help="where item_id_maps.pkl lies")
    flags.add_argument("--dtype", choices=("float32", "float16", "float64"), default="float32", help="of the matrix")
    args = flags.parse_args()

    output = Path(args.output)
    check_whole(output / MANIFEST)
    directories = named_directories(args.datasets)
    maps = load_id_maps(output / MAPS, list(directories))
    matrices = load_embeddings(list(directories.values()))
    encoder = common_encoder(list(directories.values()))
    known = catalogs(directories)
    if (output / MANIFEST).is_file() and read_json(output / MANIFEST).get("catalogs", known) != known:
        raise InputError(f"{output / MAPS} is of other items than {' '.join(args.datasets)} have now. {MAPS_REMEDY}")
    merged = output / EMBEDDINGS
    rows, width = sum(map(len, matrices.values())), next(iter(matrices.values())).shape[1]
    about = {"encoder": encoder, "rows": rows, "width": width, "maps": content(output / MAPS), "catalogs": known}
    in_order = [maps[name] for name in directories]
    with merged_matrix(merged, matrices, in_order, args.dtype) as made, staged_directory(output) as staging:
        save_json(staging / f"{merged.stem}.json", about | {"files": {merged.suffix: made}})
    print(f"{merged}: {rows} items, {width} wide, {args.dtype}")


def load_id_maps(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Data set name -> its merged ids (n,) int64, checked to be for `names` and, together, every id once.

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


def load_embeddings(directories: list[Path]) -> dict[Path, np.ndarray]:
    """File -> memory-mapped embeddings (n, E) of each data set, all of one width.

    Raises:
        InputError: missing or damaged file, embeddings of other texts than the data set's, or two widths.
    """
    paths = [directory / "item_text_embeddings.npy" for directory in directories]
    matrices = {path: load_matrix(path, REMEDY) for path in paths}
    for path in paths:
        check_encoded(path)
    first = paths[0]
    for path, matrix in matrices.items():
        if matrix.shape[1] != matrices[first].shape[1]:
            raise InputError(
                f"{path}: embeddings are {matrix.shape[1]} wide, {first} has {matrices[first].shape[1]}. "
                "Encode all data sets with one encoder (data_processing/TextEncoder_batch.py)."
            )
    return matrices


def common_encoder(directories: list[Path]) -> str | None:
    """The encoder that made all embeddings, where that is known; only the last part of its name or path counts.

    Raises:
        InputError: two encoders, whose embeddings cannot be compared even where the width is the same.
    """
    known: dict[str, Path] = {}
    for directory in directories:
        encoder = noted_encoder(directory / "item_text_embeddings.npy")
        if encoder and isinstance(encoder, str):
            known.setdefault(Path(encoder).name, directory / "item_text_embeddings.json")
    if len(known) > 1:
        (one, one_path), (other, other_path) = list(known.items())[:2]
        raise InputError(
            f"{one_path} names the encoder {one}, {other_path} names {other}. Encode all data sets with one encoder "
            "(data_processing/TextEncoder_batch.py); if it is the same under two names, mend one of the two files."
        )
    return next(iter(known), None)


@contextlib.contextmanager
def merged_matrix(output: Path, matrices: dict[Path, np.ndarray], maps: list[np.ndarray], dtype: str) -> Iterator[str]:
    """Write row `id` of each matrix (n, E) to row `map[id]` of a new `.npy` (N, E).

    Gives its fingerprint. It appears under its name when the block ends without an error; a killed run goes on where
    it stopped.

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
    job = {"from": [identity(path) for path in matrices], "to": [[int(ids[0]), int(ids[-1])] for ids in maps]}
    with resumable_matrix(output, (total, width), dtype, job) as filling:
        with tqdm(total=total, initial=filling.done, desc="embeddings", unit=" items") as progress:
            before = 0  # rows of the matrices in front
            for (path, matrix), id_map in zip(matrices.items(), maps, strict=True):
                for start in range(max(0, filling.done - before), len(matrix), CHUNK):
                    with np.errstate(over="ignore"):
                        chunk = matrix[start : start + CHUNK].astype(dtype)
                    check_finite(chunk, start, f"{path} as {dtype}")
                    filling.matrix[id_map[start : start + CHUNK]] = chunk
                    forget_pages(matrix)
                    filling.note(before + start + len(chunk))
                    progress.update(len(chunk))
                before += len(matrix)
        yield filling.finish()


if __name__ == "__main__":
    run(main)
