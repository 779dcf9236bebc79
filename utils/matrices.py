"""Long writing that goes on where it stopped: matrices filled in place, and what tells one input from another."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import DiskError, InputError
from utils.files import check_writable, fingerprint, forget_pages, read_json, resolved, save_json

NOTE_EVERY = 5.0  # seconds between two notes of how far the rows are on disk


class Filling(NamedTuple):
    """A matrix on its way to disk."""

    matrix: np.ndarray  # memory-mapped, zero where nothing was written yet
    done: int  # rows that an earlier run has written
    note: Callable[[int], None]  # to be told, after each chunk, how many rows are written
    partial: Path  # the file, until it has its name

    def finish(self) -> str:
        """Put all rows on disk, before other files go into place; returns the matrix' fingerprint."""
        self.matrix.flush()
        return fingerprint(self.partial)


@contextlib.contextmanager
def resumable_matrix(path: str | Path, shape: tuple[int, ...], dtype: Any, job: dict[str, Any]) -> Iterator[Filling]:
    """A `.npy` to fill from the first row on; it appears under its name when the block ends without an error.

    Rows go into a hidden file beside it, and how many there are into a JSON file. A killed run leaves both, and the
    next one with the same `job` (what the rows are made from) goes on behind the rows noted; with another job, it
    starts anew.

    Raises:
        InputError: another run is at work there.
        DiskError: no space for it. The space is taken first: a map on a full disk would end the process by a signal.
    """
    path = resolved(path)
    partial, notes = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.partial.json")
    job = {**job, "shape": list(shape), "dtype": np.dtype(dtype).str}
    new_folder = not path.parent.exists()
    check_writable(path)
    with _alone(partial):
        try:
            done = _rows_done(partial, notes, job)
            if done is None:
                notes.unlink(missing_ok=True)
                _allocate(partial, shape, np.dtype(dtype))
                save_json(notes, {"job": job, "done": 0})
            matrix = np.lib.format.open_memmap(partial, mode="r+")
        except (OSError, ValueError) as error:  # a ValueError of a file that was cut since it was left
            partial.unlink(missing_ok=True)
            notes.unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or error
            raise DiskError(
                f"{path} could not be written ({reason}). Free some space, or name another place."
            ) from error
        noted = time.monotonic()

        def note(rows: int) -> None:
            nonlocal noted
            if time.monotonic() - noted >= NOTE_EVERY:
                matrix.flush()  # only what is on disk counts as done
                forget_pages(matrix)
                save_json(notes, {"job": job, "done": rows})
                noted = time.monotonic()

        try:
            yield Filling(matrix, done or 0, note, partial)
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


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Keep other runs away from a file that is filled: they would write into the same rows, or cut it under the map."""
    with partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{partial}: another run is writing here. Wait for it, or name another place.") from error
        except OSError:
            pass  # a file system without locks
        yield


def _rows_done(partial: Path, notes: Path, job: dict[str, Any]) -> int | None:
    """Rows that an earlier run with this job has left; None where there is none."""
    if not partial.stat().st_size or not notes.is_file():
        return None
    try:
        noted = read_json(notes)
    except InputError:
        return None
    return noted["done"] if noted.get("job") == job else None


def _allocate(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """A `.npy` of zeros whose space on disk is taken."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": dtype.str, "fortran_order": False, "shape": tuple(map(int, shape))}
        )
        file.flush()
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), file.tell(), size)
        else:
            file.truncate(file.tell() + size)
