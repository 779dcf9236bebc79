"""What a shop's log says, on disk: the statistics of utils/scores.py as arrays that are mapped, grown to new items."""

from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from utils.eras import UNKNOWN, Eras
from utils.errors import InputError
from utils.files import load_array
from utils.scores import LogStatistics

REMEDY = "Make the bundle again (python -m serving.bundle)."
MATRICES = ("transitions", "cosine", "ease")
PARTS = ("data", "indices", "indptr")


def save_log(folder: Path, log: LogStatistics, ease: csr_array | None) -> None:
    """Write the statistics of N items, and EASE's weights (N, N) where there are any, into an empty folder."""
    arrays = {"share": log.share, **{f"eras.{name}": values for name, values in log.eras._asdict().items()}}
    for name, matrix in zip(MATRICES, (log.transitions, log.cosine, ease), strict=True):
        if matrix is not None:
            arrays |= {f"{name}.{part}": getattr(matrix, part) for part in PARTS}
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)


def load_log(folder: Path) -> tuple[LogStatistics, csr_array | None]:
    """Read what `save_log` wrote, without a copy; InputError for a missing or damaged file."""
    share = load_array(folder / "share.npy", REMEDY, mode="c")
    eras = Eras(*(load_array(folder / f"eras.{name}.npy", REMEDY, mode="c") for name in Eras._fields))

    def matrix(name: str) -> csr_array:
        data, indices, indptr = (load_array(folder / f"{name}.{part}.npy", REMEDY, mode="c") for part in PARTS)
        check_matrix(folder / name, data, indices, indptr, len(share))
        return csr_array((data, indices, indptr), shape=(len(share), len(share)))

    if share.ndim != 1 or not len(eras.line) == len(eras.item) == len(share):
        raise InputError(f"{folder}: the arrays are of different numbers of items. {REMEDY}")
    ease = matrix("ease") if (folder / "ease.indptr.npy").is_file() else None
    return LogStatistics(share, matrix("transitions"), matrix("cosine"), eras), ease


def check_matrix(path: Path, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, items: int) -> None:
    """InputError unless these are the parts of a matrix (N, N); reading with others could end the process."""
    kinds = [(part.ndim, part.dtype.kind in kind) for part, kind in ((data, "f"), (indices, "iu"), (indptr, "iu"))]
    fits = kinds == [(1, True)] * 3 and len(indptr) == items + 1 and len(data) == len(indices) == indptr[-1]
    fits = fits and indptr[0] == 0 and (np.diff(indptr) >= 0).all()
    if not fits or (len(indices) and not 0 <= indices.min() <= indices.max() < items):
        raise InputError(f"{path}.*.npy are not the parts of a matrix of {items} items. {REMEDY}")


def grow_log(
    log: LogStatistics, ease: csr_array | None, items: int, moved: dict[int, int]
) -> tuple[LogStatistics, csr_array | None]:
    """The same statistics of more `items`: new ones as if the log had never had them.

    `moved` says of some new ones which item they are in the log, which has that number no more.
    """
    known = len(log.share)
    if items == known and not moved:
        return log, ease
    place = np.arange(known)  # number of each item of the log
    place[list(moved.values())] = list(moved)

    def grown(values: np.ndarray, other: float) -> np.ndarray:
        found = np.full(items, other, dtype=values.dtype)
        found[place] = values
        return found

    def grown_matrix(matrix: csr_array) -> csr_array:
        lengths = np.zeros(items, dtype=np.int64)
        lengths[place] = np.diff(matrix.indptr)
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        if not moved:  # rows stay where they are
            return csr_array((matrix.data, matrix.indices, indptr), shape=(items, items))
        row = np.repeat(place, np.diff(matrix.indptr))
        order = np.argsort(row, kind="stable")
        return csr_array((matrix.data[order], place[matrix.indices][order], indptr), shape=(items, items))

    least = float(log.share.min())  # of an item that nobody had, or less often than any other
    eras = Eras(grown(log.eras.line, 0.0), grown(log.eras.item, UNKNOWN), log.eras.gain)
    statistics = LogStatistics(grown(log.share, least), grown_matrix(log.transitions), grown_matrix(log.cosine), eras)
    return statistics, None if ease is None else grown_matrix(ease)
