"""Files on disk: written whole or not at all, recognised by hashes; files of others are read as data only."""

import contextlib
import fcntl
import glob
import gzip
import hashlib
import json
import math
import mmap
import os
import platform
import re
import resource
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from utils.errors import DiskError, InputError, reason

SPARE_MEMORY = 1 << 28  # bytes that may be taken beyond what is allowed for reading a file
MOST_UNPACKED = 10  # an archive of weights or embeddings may unpack to so many times its size: they hardly shrink
LONGEST_LINE = 1 << 24  # characters of a line of JSON lines
BLOCKS, BLOCK = 256, 1 << 14  # number and bytes of the blocks of a large file that its fingerprint reads
MANIFEST = "dataset.json"  # lists the files of a data set directory, of data/pre_train or of data/eval with hashes
_LIMITED = threading.RLock()


def resolve_links(path: str | Path) -> Path:
    """Return the path behind all links; raise InputError if they lead in a circle."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:  # a RuntimeError of Python before 3.13
        raise InputError(f"{path}: a link there leads in a circle. Name another place.") from error


def require_file(path: str | Path, remedy: str) -> Path:
    """Return the path if it is a file; otherwise raise InputError with the remedy, such as how to make the file."""
    path = Path(path)
    if not path.is_file():
        resolve_links(path)
        found = "is a directory" if path.is_dir() else "is a pipe or device" if path.exists() else "does not exist"
        raise InputError(f"{path} {found}; a file was expected here. {remedy}")
    return path


@contextlib.contextmanager
def limited_memory(allowed: int) -> Iterator[None]:
    """Raise MemoryError in the block when it takes more bytes than `allowed`, and some to spare (on Linux only).

    It is for reading a file from others: a few bytes of it may ask for any amount of memory.
    """
    taken = Path("/proc/self/statm")
    with _LIMITED:
        before, most = resource.getrlimit(resource.RLIMIT_AS)
        if taken.is_file():
            limit = int(taken.read_text().split()[0]) * resource.getpagesize() + SPARE_MEMORY + allowed
            limit = limit if before == resource.RLIM_INFINITY else min(limit, before)
            resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (before, most))


def load_array(path: str | Path, remedy: str, mode: str = "r") -> np.ndarray:
    """Memory-map a `.npy` without a copy; InputError if it is missing or damaged.

    With mode "c" the array can be written to, which does not change the file.
    """
    path = require_file(path, remedy)
    try:
        return np.lib.format.open_memmap(path, mode=mode)
    except Exception as error:  # a damaged header may raise nearly anything
        raise InputError(
            f"{path} is not a whole .npy array ({reason(error)}); it is truncated or corrupt. {remedy}"
        ) from error


def load_matrix(path: str | Path, remedy: str) -> np.ndarray:
    """Memory-map a `.npy` of item embeddings (N, E) without a copy; InputError unless it is a matrix of floats."""
    matrix = load_array(path, remedy)
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.size:
        raise InputError(
            f"{path} holds shape {matrix.shape}, {matrix.dtype}, expected a floating-point "
            f"matrix (items, width). {remedy}"
        )
    return matrix


def forget_pages(matrix: np.ndarray) -> None:
    """Give back the memory that reading or writing a memory-mapped file has taken; the contents are kept."""
    _advise(matrix, "MADV_DONTNEED")


def expect_random_rows(matrix: np.ndarray) -> None:
    """Tell the system that rows of a memory-mapped file are read at random, so that it does not read ahead of each."""
    _advise(matrix, "MADV_RANDOM")


def _advise(matrix: np.ndarray, advice: str) -> None:
    mapped = getattr(matrix, "_mmap", None)
    if mapped is not None and hasattr(mmap, advice):
        mapped.madvise(getattr(mmap, advice))


def read_json(path: str | Path, missing_ok: bool = False) -> dict[str, Any]:
    """Read a JSON object, empty for no file with `missing_ok`; InputError if it is damaged or holds something else."""
    if missing_ok and not Path(path).is_file():
        return {}
    try:
        # NaN, which is no JSON, becomes None: it differs from itself, so nothing that is compared would be equal.
        loaded = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({reason(error)}). Delete or restore it.") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds a JSON {type(loaded).__name__}, expected an object. Delete or restore it.")
    return loaded


def read_jsonl(path: str | Path, remedy: str, expected: type = dict) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, object) of a JSON-lines file, gzip-compressed if its name ends in `.gz`.

    Raises:
        InputError: missing or damaged file, or a line that is not JSON of the type `expected`; names the line.
    """
    path = require_file(path, remedy)
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE), ""), start=1):
                at = f"{path}, line {number}"
                if len(line) == LONGEST_LINE:  # a few compressed bytes may unpack to gigabytes
                    raise InputError(f"{at}: longer than {LONGEST_LINE} characters. Split or remove it.")
                if not line.strip():
                    continue
                record = json.loads(line)
                if "\\ud" in line.lower():
                    json.dumps(record, ensure_ascii=False).encode()  # raises where half of a surrogate pair is alone
                if not isinstance(record, expected):
                    raise InputError(f"{at}: found a JSON {type(record).__name__}, expected an object.")
                yield number, record
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: not valid JSON ({error.msg}). Mend or remove the line.") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}, after line {number}: cannot be read ({reason(error)}). {remedy}") from error
    except (RecursionError, ValueError) as error:
        known = {RecursionError: "lists in lists, too deep", UnicodeEncodeError: "half of a \\ud83d\\ude00 pair"}
        found = known.get(type(error), "a number of too many digits")
        raise InputError(f"{path}, line {number}: not valid JSON ({found}). Mend or remove the line.") from error


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that gets its name only when it is whole: it is written under another name, synced and renamed.

    On any failure, such as a full disk, what was written is removed, and an older file of that name is kept. Links are
    followed; a device or pipe is written to directly.

    Raises:
        DiskError: the file cannot be written.
    """
    path = resolve_links(path)
    encoding = None if "b" in mode else "utf-8"
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open(mode, encoding=encoding) as file:
            yield file
        return
    partial = _partial(path)
    try:
        check_writable(path)
        with partial.open(mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DiskError(
            f"{path} could not be written ({reason(error)}). Free some space, or name another place."
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _partial(path: Path) -> Path:
    """A hidden name beside `path` for this process; removes what killed processes of this machine left under theirs."""
    host = platform.node()
    for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(host)}.*.partial"):
        owner = left.name.split(".")[-2]
        if owner.isdecimal() and (int(owner) == os.getpid() or not _alive(int(owner))):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{host}.{os.getpid()}.partial")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def check_writable(path: str | Path) -> None:
    """Make the folder of a file that is to be written; raise InputError if the file cannot be written there.

    It is also called before long work, so that the result does not get lost.
    """
    path = Path(path)
    resolve_links(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory; a file is to be written here. Name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made ({error.strerror}). Name another place.") from error
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path.parent} cannot be written to. Change its permissions, or name another place.")


@contextlib.contextmanager
def staged_directory(output: str | Path, belonging: Iterable[str] = (), first: str = "") -> Iterator[Path]:
    """Yield a hidden folder for new files, which are moved to `output` when all are whole: one by one, by name.

    Files of an earlier run are replaced; those named in `belonging` are removed if there is no new one, as they are of
    other items or users. On failure all files stay as they were. Files that end in `first` are moved before the others:
    if they list the others, `check_whole` finds out that a move was interrupted.
    """
    output = resolve_links(output)
    staging = _partial(output)
    if output.is_dir():  # which may be a disk of its own, to which nothing can be moved from beside it
        staging = _partial(output / output.name)
    try:
        check_writable(staging)
        staging.mkdir()
        yield staging
        output.mkdir(exist_ok=True)
        made = [file.relative_to(staging) for file in staging.rglob("*") if file.is_file()]
        for name in sorted(made, key=lambda name: (name.suffix != first, name)):
            (output / name).parent.mkdir(exist_ok=True)
            (staging / name).replace(output / name)
        for name in {Path(name) for name in belonging} - set(made):
            (output / name).unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"{output} could not be written ({error.strerror or error}). Name another place.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def save_matrix(path: str | Path, matrix: np.ndarray) -> None:
    """Write a `.npy` atomically."""
    with atomic_write(path) as file:
        np.save(file, matrix, allow_pickle=False)


def save_json(path: str | Path, value: dict[str, Any]) -> None:
    """Write an indented JSON object atomically."""
    with atomic_write(path, "w") as file:
        json.dump(nan_to_none(value), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def nan_to_none(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None in dicts and lists."""
    if isinstance(value, dict):
        return {name: nan_to_none(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [nan_to_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fingerprint(path: str | Path) -> str:
    """Hash of a file's size and of 256 blocks of 16 KiB spread evenly over it, which is all of it up to 4 MiB.

    It takes milliseconds at any size. Files that were made from different inputs differ nearly everywhere, so the
    blocks tell them apart. A single changed byte in a large file may go unnoticed, but not by `identity` and `content`.
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
    """Hash of a whole file; of a `.npy`, which may be larger than memory, only its `fingerprint`."""
    if Path(path).suffix == ".npy":
        return fingerprint(path)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def identity(path: str | Path) -> list[Any]:
    """Size, time (ns), inode and `fingerprint` of a file, which show whether it is still the same on this machine.

    A copy has another identity, and so has a file in which only a byte was changed.
    """
    metadata = Path(path).stat()
    return [metadata.st_size, metadata.st_mtime_ns, metadata.st_ino, fingerprint(path)]


def lock_folder(folder: Path, flag: str) -> int:
    """Keep other runs from writing to the folder of `flag` until this process ends; returns the descriptor to keep.

    InputError if another run has the folder: checkpoints of two runs would replace each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    message = f"another run is writing its checkpoints to {folder}. Wait for it, stop it, or give another {flag}."
    try:
        lock(descriptor, message)
    except InputError:
        os.close(descriptor)
        raise
    return descriptor


def lock(descriptor: int, message: str) -> None:
    """Lock an open file or folder for this process; raise InputError with the message if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(message) from error
    except OSError:  # a network disk without locks
        pass


@contextlib.contextmanager
def staged_set(output: str | Path, names: Sequence[str], **notes: Any) -> Iterator[Path]:
    """A `staged_directory` that also writes OUTPUT/dataset.json: hashes of the files of these names, and `notes`.

    The hash of a file that does not exist is null. JSON is moved first, so that `check_whole` refuses the directory
    until the last file is moved or removed.
    """
    with staged_directory(output, names, first=".json") as staging:
        yield staging
        files = {name: content(staging / name) if (staging / name).is_file() else None for name in names}
        save_json(staging / MANIFEST, {"files": files, **notes})


def check_whole(note: Path) -> None:
    """Raise InputError if a file is not the one that a JSON file beside it lists under "files".

    A name such as ".npy" stands for the JSON file's own name with that ending, so that both can be renamed together.
    The release has no such JSON files; then nothing is compared.
    """
    files = read_json(note, missing_ok=True).get("files", {})
    if not isinstance(files, dict):
        raise InputError(f'{note}: "files" is {str(files)[:60]}, expected names with hashes. Delete or restore it.')
    for name, known in files.items():
        if not re.fullmatch(r"\.?\w[\w.-]{0,99}", name):
            raise InputError(f"{note} lists {name[:60]!r}, which is no file beside it. Delete or restore it.")
        path = note.with_suffix(name) if name.startswith(".") else note.parent / name
        if (content(path) if path.is_file() else None) != known:
            raise InputError(
                f"{path} is not what {note} lists: a run was stopped, or a file was changed by hand. Run the same "
                f'command again; if the change is meant, remove "files" from {note}.'
            )
