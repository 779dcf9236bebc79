"""Text files of other programs in a form that DuckDB reads: unpacked, in UTF-8, and rewritten where it is necessary.

Files are rewritten line by line, so that every line keeps its number.
"""

import ast
import codecs
import contextlib
import gzip
import json
import re
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from utils.errors import InputError

REMEDY = "See import_dataset.py --help for the files that it reads."
PEEKED = 1 << 16  # bytes that are read at once, and by which a format is recognised
DAMAGED = (OSError, EOFError, zlib.error)  # what reading a compressed file that is not whole raises
LONGEST_LINE = 1 << 24  # characters of a line that is rewritten
LONGEST_LITERAL = 1 << 20  # characters of a Python literal, which takes 500 times as much memory to be parsed
EXAMPLES = 3  # lines of a file that a message names


def peek(path: Path) -> bytes:
    """Read the first bytes of a file, unpacked where its name ends in .gz.

    Raises:
        InputError: an empty file, an archive, or a name that contradicts the content.
    """
    try:
        with open_bytes(path) as file:
            start = file.read(PEEKED)
    except DAMAGED as error:
        raise InputError(f"{path} cannot be read ({error}). Fetch it again, or name it after its format.") from error
    if not start.strip():
        raise InputError(f"{path} is empty. {REMEDY}")
    if start.startswith(b"\x1f\x8b"):
        raise InputError(f"{path} is compressed by gzip: give it a name that ends in .gz, or unpack it.")
    if start.startswith(b"PK\x03\x04"):
        raise InputError(f"{path} is a zip archive or a spreadsheet: unpack it, or save it as CSV.")
    return start


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked where its name ends in .gz."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def undecodable(path: Path, error: UnicodeError, encoding: str, before: int) -> str:
    """The message for text in another encoding; `before` is the number of lines in front of what was decoded."""
    found = str(error)
    if isinstance(error, UnicodeDecodeError):
        line = before + error.object[: error.start].count(b"\n") + 1
        found = f"line {line} has {error.object[error.start : error.start + 8]!r}"
    return (
        f"{path} is not {encoding}: {found}. Name the encoding of the file, for example --encoding latin-1, cp1252 or "
        "utf-16; a file that is no text needs --format."
    )


@contextlib.contextmanager
def readable_path(path: Path, encoding: str, output: Path | None, rewrite: str | None = None) -> Iterator[Path]:
    """Yield a path under which the file can be read as UTF-8, and which DuckDB does not take for a pattern.

    That is the path itself, or a link to the file or a copy of it, rewritten by one of REWRITES, in a temporary folder:
    hidden beside `output` or, for None, where temporary files go.

    Raises:
        InputError: the file is not in that encoding, or has lines that cannot be rewritten.
    """
    plain = codecs.lookup(encoding).name == "utf-8" and rewrite is None
    if plain and not set("*?[") & set(str(path)):
        yield path
        return
    where = {} if output is None else {"dir": output.resolve().parent, "prefix": f".{output.resolve().name}."}
    if output is not None:
        output.resolve().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(suffix=".partial", **where) as folder:
        readable = Path(folder) / ("file.gz" if plain and path.suffix == ".gz" else "file")
        if plain:
            readable.symlink_to(path.resolve())
        else:
            blocks = decode_blocks(path, encoding)
            with readable.open("wb") as copy:
                for text in blocks if rewrite is None else rewrite_lines(path, blocks, REWRITES[rewrite]):
                    copy.write(text.encode())
        yield readable


def decode_blocks(path: Path, encoding: str) -> Iterator[str]:
    """Yield the text of a file block by block; raise InputError if it is damaged, or not in that encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    lines = 0
    with open_bytes(path) as file:
        while True:
            try:
                block = file.read(PEEKED)
                text = decoder.decode(block, final=not block)
            except UnicodeError as error:
                raise InputError(undecodable(path, error, encoding, lines)) from error
            except DAMAGED as error:
                raise InputError(f"{path}, after line {lines}: cannot be read ({error}). Fetch it again.") from error
            yield text
            lines += text.count("\n")
            if not block:
                return


def rewrite_lines(path: Path, blocks: Iterable[str], rewrite: Callable[[str], str]) -> Iterator[str]:
    """Yield the lines of a text that comes in blocks, each rewritten; blank lines stay.

    Raises:
        InputError: lines that cannot be rewritten; names them.
    """
    bad: list[int] = []
    reason = ""
    for number, line in enumerate(split_lines(path, blocks), start=1):
        try:
            yield rewrite(line) + "\n" if line.strip() else "\n"
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            reason = reason or (str(error).splitlines() or ["brackets or signs in one another, too deep"])[0]
            bad.append(number)
    if bad:
        raise InputError(
            f"{path}, {list_numbers(bad)}: no Python literal of a dict of texts, numbers and lists ({reason}). Mend it."
        )


def split_lines(path: Path, blocks: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in blocks, without line breaks; none may be longer than LONGEST_LINE."""
    rest, number = "", 0
    for block in blocks:
        *lines, rest = (rest + block).split("\n")
        number += len(lines)
        if len(rest) > LONGEST_LINE:
            raise InputError(f"{path}, line {number + 1}: longer than {LONGEST_LINE} characters. Is it a text?")
        yield from lines
    if rest:
        yield rest


def literal_to_json(line: str) -> str:
    """Convert a dict as Python prints it to JSON; only literals are evaluated.

    Raises:
        ValueError, TypeError, SyntaxError, MemoryError, RecursionError: the line is no such dict.
    """
    if len(line) > LONGEST_LITERAL:
        raise ValueError(f"longer than {LONGEST_LITERAL} characters")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python about backslashes
        value = ast.literal_eval(line.strip())
    if not isinstance(value, dict):
        raise TypeError(f"found a {type(value).__name__}")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()  # raises where a text has half of a surrogate pair, which no file can hold
    return text


REWRITES: dict[str, Callable[[str], str]] = {
    "blanks": lambda line: "\t".join(line.split()),
    "backslashes": lambda line: re.sub(r'\\(["\\])', lambda pair: '""' if pair[1] == '"' else "\\", line),
    "python": literal_to_json,
}


def list_numbers(numbers: list[int], count: int | None = None, what: str = "line") -> str:
    """The first of `count` lines, or of what else has numbers: line 3, line 8, line 9 and 41 more."""
    more = (count or len(numbers)) - EXAMPLES
    return ", ".join(f"{what} {number}" for number in numbers[:EXAMPLES]) + (f" and {more} more" if more > 0 else "")


@contextlib.contextmanager
def original_path_in_errors(path: Path, readable: Path) -> Iterator[None]:
    """Let the messages of errors in the block name the user's file in place of the copy that was read."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(readable), str(path))) from error.__cause__


def refuse_undecodable(readable: Path) -> None:
    """Raise InputError naming the first line that is not UTF-8, or after which a compressed file breaks off."""
    line = 0
    try:
        with open_bytes(readable) as file:
            for row in file:
                row.decode()
                line += 1
    except UnicodeError as error:
        raise InputError(undecodable(readable, error, "utf-8", line)) from error
    except DAMAGED as error:
        raise InputError(f"{readable}, after line {line}: cannot be read ({error}). Fetch it again.") from error
