"""Long writing that goes on where it stopped: matrices filled in place, and what tells one input from another."""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import DiskError, InputError
from utils.files import check_writable, forget_pages, read_json, resolved, save_json

BLOCKS, BLOCK = 256, 1 << 14  # read of a large file for its fingerprint
NOTE_EVERY = 5.0  # seconds between two notes of how far the rows are on disk


def fingerprint(path: str | Path) -> str:
    """Hash of a file's size and of 256 blocks of 16 KiB spread evenly over it: all of it up to 4 MiB.

    Milliseconds at any size. Two files that scripts made of different inputs differ nearly everywhere, so that the
    blocks tell them apart; a single byte changed in a large file may go unnoticed, but not by `identity` and `content`.
    """
    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    starts = range(0, size, BLOCK) if size <= BLOCKS * BLOCK else np.linspace(0, size - BLOCK, BLOCKS, dtype=np.int64)
    with path.open("rb") as file:
        for start in starts:
            file.seek(int(start))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def content(path: str | Path) -> str:
    """Hash of all of a file; of a `.npy`, which may be larger than memory and is only mapped, its `fingerprint`."""
    if Path(path).suffix == ".npy":
        return fingerprint(path)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def identity(path: str | Path) -> list[Any]:
    """What tells whether a file on this machine is still the same: size, time (ns), inode, and its `fingerprint`.

    A copy has another one, and so has a file in which a byte was changed where the fingerprint does not look.
    """
    about = Path(path).stat()
    return [about.st_size, about.st_mtime_ns, about.st_ino, fingerprint(path)]


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


def locked(folder: Path, flag: str) -> int:
    """A descriptor that keeps other runs from writing to the folder of `flag` until this process ends, however it ends.

    Raises:
        InputError: another run has it: checkpoints of two, under the same names, would replace each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(
            f"another run is writing its checkpoints to {folder}. Wait for it, stop it, or give another {flag}."
        ) from error
    except OSError:  # a network disk without locks
        pass
    return descriptor


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
