"""Reading files from others as data only, and writing files whole or not at all."""

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

SPARE_MEMORY = 1 << 28  # bytes that reading a file may take besides
MOST_UNPACKED = 10  # times the size of an archive of weights or embeddings, which hardly shrink
LONGEST_LINE = 1 << 24  # characters, of JSON lines
_LIMITED = threading.RLock()


BLOCKS, BLOCK = 256, 1 << 14  # read of a large file for its fingerprint

MANIFEST = "dataset.json"  # of a data set directory, of data/pre_train and of data/eval


def resolved(path: str | Path) -> Path:
    """The path behind all links; InputError where they lead in a circle."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:  # the latter of Python before 3.13
        raise InputError(f"{path}: a link there leads in a circle. Name another place.") from error


def require_file(path: str | Path, remedy: str) -> Path:
    """The path if it is a file; otherwise InputError with the remedy (which script makes or fetches it)."""
    path = Path(path)
    if not path.is_file():
        resolved(path)
        found = "is a directory" if path.is_dir() else "is a pipe or device" if path.exists() else "does not exist"
        raise InputError(f"{path} {found}; a file was expected here. {remedy}")
    return path


@contextlib.contextmanager
def limited_memory(allowed: int) -> Iterator[None]:
    """MemoryError in place of taking more than so many bytes, and a few to spare, where the system can say (Linux).

    For the time of reading a file from others, a few bytes of which may ask for any amount.
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
    """Memory-map a `.npy`, no copy made; mode "c" lets the array be written to, which never reaches the file.

    Raises:
        InputError: missing or damaged file.
    """
    path = require_file(path, remedy)
    try:
        return np.lib.format.open_memmap(path, mode=mode)
    except Exception as error:  # a damaged header may raise nearly anything
        raise InputError(
            f"{path} is not a whole .npy array ({reason(error)}); it is truncated or corrupt. {remedy}"
        ) from error


def load_matrix(path: str | Path, remedy: str) -> np.ndarray:
    """Memory-map a two-dimensional floating-point `.npy`, e.g. item embeddings (N, E); no copy is made.

    Raises:
        InputError: missing or damaged file, or not a two-dimensional array of floats.
    """
    matrix = load_array(path, remedy)
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.size:
        raise InputError(
            f"{path} holds shape {matrix.shape}, {matrix.dtype}, expected a floating-point "
            f"matrix (items, width). {remedy}"
        )
    return matrix


def forget_pages(matrix: np.ndarray) -> None:
    """Give back the memory through which a mapped file was read or written so far; its contents stay."""
    _advise(matrix, "MADV_DONTNEED")


def expect_random_rows(matrix: np.ndarray) -> None:
    """Have the system read no more of a mapped file than the rows asked for: it may read megabytes ahead of each."""
    _advise(matrix, "MADV_RANDOM")


def _advise(matrix: np.ndarray, advice: str) -> None:
    mapped = getattr(matrix, "_mmap", None)
    if mapped is not None and hasattr(mmap, advice):
        mapped.madvise(getattr(mmap, advice))


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object written beside another file; a damaged one is an InputError that names it."""
    try:
        # NaN, which is no JSON and differs from itself, becomes None, as `finite` writes it.
        loaded = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({reason(error)}). Delete or restore it.") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds a JSON {type(loaded).__name__}, expected an object. Delete or restore it.")
    return loaded


def read_jsonl(path: str | Path, remedy: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON-lines file, gzip-compressed when it ends in `.gz`.

    Raises:
        InputError: missing or damaged file, or a line that is not a JSON object; names the line.
    """
    for number, record in read_json_lines(path, remedy):
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: found a JSON {type(record).__name__}, expected an object.")
        yield number, record


def read_json_lines(path: str | Path, remedy: str) -> Iterator[tuple[int, Any]]:
    """The same, whatever the lines hold."""
    path = require_file(path, remedy)
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE), ""), start=1):
                if len(line) == LONGEST_LINE:  # a few bytes of a compressed file may go on for gigabytes
                    raise InputError(
                        f"{path}, line {number}: longer than {LONGEST_LINE} characters. Split or remove it."
                    )
                if not line.strip():
                    continue
                record = json.loads(line)
                if "\\ud" in line.lower():
                    json.dumps(record, ensure_ascii=False).encode()  # half an emoji is no text: nothing could encode it
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
    """Open a file that appears under its name only when it is whole: written beside, synced, then renamed.

    On any failure, a full disk included, what was written is removed and an older file of that name is kept. A link is
    followed; a device or pipe is written to directly.

    Raises:
        DiskError: the file cannot be written.
    """
    path = resolved(path)
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
        reason = error.strerror or str(error)  # numpy reports a full disk without an error number
        raise DiskError(f"{path} could not be written ({reason}). Free some space, or name another place.") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _partial(path: Path) -> Path:
    """A hidden name beside `path` for this process; removes what processes that were killed here left under theirs."""
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
    """Make the folder of a file that is to be written; InputError where that, or the file, cannot be.

    Called before long work as well, so that its result is not lost for want of a place.
    """
    path = Path(path)
    resolved(path)
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
    """A hidden folder to write several files in, which are moved to `output` when all are whole: one by one, by name.

    Files of an earlier run are replaced, and those called as in `belonging` removed where there is no new one: they are
    of other items or users. On failure they stay as they were, and nothing new appears. Files that end in `first` are
    moved before the others: a killed move shows itself where they list those (see `utils.manifest`).
    """
    output = resolved(output)
    staging = _partial(output)
    if output.is_dir():  # which may be a disk of its own, to which nothing can be moved from beside it
        staging = _partial(output / output.name)
    try:
        check_writable(staging)
        staging.mkdir()
        yield staging
        output.mkdir(exist_ok=True)
        made = sorted(staging.iterdir(), key=lambda file: (file.suffix != first, file.name))
        for file in made:
            file.replace(output / file.name)
        for name in set(belonging) - {file.name for file in made}:
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
        json.dump(finite(value), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def finite(value: Any) -> Any:
    """A value for JSON, which has no words for NaN and infinity, with None in their place in dicts and lists."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    metadata = Path(path).stat()
    return [metadata.st_size, metadata.st_mtime_ns, metadata.st_ino, fingerprint(path)]


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


@contextlib.contextmanager
def staged_set(output: str | Path, names: Sequence[str], **notes: Any) -> Iterator[Path]:
    """A `staged_directory` that writes OUTPUT/dataset.json too: hashes of the files of these names, and `notes`.

    A name without a file has null for a hash. JSON moves first, so that `check_whole` refuses the directory until the
    last file has moved or is removed.
    """
    with staged_directory(output, names, first=".json") as staging:
        yield staging
        files = {name: content(staging / name) if (staging / name).is_file() else None for name in names}
        save_json(staging / MANIFEST, {"files": files, **notes})


def check_whole(note: Path) -> None:
    """InputError where a file in the directory of a JSON file is not the one that it lists under "files".

    A name such as ".npy" is that of the JSON file with another ending: both may be renamed together. The release has
    no such JSON: then there is nothing to compare.
    """
    files = read_json(note).get("files", {}) if note.is_file() else {}
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
