"""Matrices that are written to disk row by row: a run that was killed goes on behind the rows it has written."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from utils.data import check_finite
from utils.errors import DiskError, InputError, reason
from utils.files import check_writable, fingerprint, forget_pages, lock, read_json, resolve_links, save_json

NOTE_EVERY = 5.0  # seconds between two notes of how many rows are on disk


class Filling(NamedTuple):
    """A matrix that is being written."""

    matrix: np.ndarray  # memory-mapped, zero where nothing was written yet
    done: int  # rows that an earlier run has written
    note: Callable[[int], None]  # call it after each chunk with the number of rows written so far
    partial: Path  # the file under its temporary name

    def finish(self) -> str:
        """Put all rows on disk, before the files that refer to them are written; returns the fingerprint."""
        self.matrix.flush()
        return fingerprint(self.partial)


@dataclass(frozen=True)
class RowCopy:
    """Rows of one matrix that are to be copied into another."""

    source: str  # the name of the matrix in messages
    matrix: np.ndarray  # (n, E) float, usually memory-mapped
    rows: np.ndarray | None = None  # (m,) int64 rows to copy; None: all of them
    targets: np.ndarray | None = None  # (m,) int64 rows to write to; None: the first m

    def __len__(self) -> int:
        return len(self.matrix if self.rows is None else self.rows)


def copy_rows(
    filling: Filling,
    copies: list[RowCopy],
    chunk: int,
    convert: Callable[[np.ndarray], np.ndarray] | None = None,
    label: str | None = None,
) -> None:
    """Copy rows into a matrix that is being written, behind those that an earlier run has copied.

    Args:
        filling: the matrix to write to; the rows are cast to its dtype.
        copies: what to copy, in this order.
        chunk: rows that are in memory at once.
        convert: (n, E) float32 -> what is written in place of n rows; None: the rows themselves.
        label: of the progress bar; None: no bar.

    Raises:
        InputError: a row with NaN or infinity, or one that is too large for the dtype; names source and row.
    """
    dtype = filling.matrix.dtype if convert is None else np.float32
    before = 0  # rows of the copies in front of this one
    progress = tqdm(total=sum(map(len, copies)), initial=filling.done, desc=label, unit=" items", disable=label is None)
    with progress:
        for copy in copies:
            for start in range(max(0, filling.done - before), len(copy), chunk):
                span = slice(start, min(start + chunk, len(copy)))
                rows = span if copy.rows is None else copy.rows[span]
                with np.errstate(over="ignore"):
                    values = copy.matrix[rows].astype(dtype)
                check_finite(values, start if copy.rows is None else rows, copy.source)
                filling.matrix[span if copy.targets is None else copy.targets[span]] = (
                    values if convert is None else convert(values)
                )
                forget_pages(copy.matrix)
                filling.note(before + span.stop)
                progress.update(span.stop - start)
            before += len(copy)


@contextlib.contextmanager
def resumable_matrix(path: str | Path, shape: tuple[int, ...], dtype: Any, job: dict[str, Any]) -> Iterator[Filling]:
    """Open a new `.npy` to be filled from the first row on; it gets its name when the block ends without an error.

    The rows go into a hidden file beside `path`, and their number into a JSON file. A killed run leaves both. The next
    run with the same `job` (what the rows are made from) goes on behind the rows noted; another job starts anew.

    Raises:
        InputError: another run is writing there.
        DiskError: no space. The space is taken first: a memory map on a full disk would end the process by a signal.
    """
    path = resolve_links(path)
    partial, notes = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.partial.json")
    job = {**job, "shape": list(shape), "dtype": np.dtype(dtype).str}
    new_folder = not path.parent.exists()
    check_writable(path)
    with partial.open("ab") as file:  # two runs would write into the same rows, or cut the file under the memory map
        lock(file.fileno(), f"{partial}: another run is writing here. Wait for it, or name another place.")
        matrix, done = _open_partial(path, partial, notes, shape, job)
        noted = time.monotonic()

        def note(rows: int) -> None:
            nonlocal noted
            if time.monotonic() - noted >= NOTE_EVERY:
                matrix.flush()  # only what is on disk counts as done
                forget_pages(matrix)
                save_json(notes, {"job": job, "done": rows})
                noted = time.monotonic()

        try:
            yield Filling(matrix, done, note, partial)
        except DiskError:
            raise
        except InputError:  # the same input would fail again
            partial.unlink()
            notes.unlink()
            if new_folder and not any(path.parent.iterdir()):
                path.parent.rmdir()
            raise
        matrix.flush()
        partial.replace(path)
        notes.unlink()


def _open_partial(
    path: Path, partial: Path, notes: Path, shape: tuple[int, ...], job: dict[str, Any]
) -> tuple[np.ndarray, int]:
    """Memory-map what an earlier run with this job has left, or a new matrix of zeros; and how many rows are done."""
    try:
        noted = {}
        with contextlib.suppress(InputError):  # damaged notes are worth no more than none
            noted = read_json(notes, missing_ok=True) if partial.stat().st_size else {}
        if noted.get("job") != job:
            noted = {"job": job, "done": 0}
            notes.unlink(missing_ok=True)
            _allocate(partial, shape, np.dtype(job["dtype"]))
            save_json(notes, noted)
        return np.lib.format.open_memmap(partial, mode="r+"), noted["done"]
    except (OSError, ValueError) as error:  # a ValueError of a file that was cut since it was left
        partial.unlink(missing_ok=True)
        notes.unlink(missing_ok=True)
        raise DiskError(
            f"{path} could not be written ({reason(error)}). Free some space, or name another place."
        ) from error


def _allocate(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Write a `.npy` of zeros whose space on disk is taken."""
    with path.open("wb") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(map(int, shape))}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), file.tell(), size)
        else:
            file.truncate(file.tell() + size)
