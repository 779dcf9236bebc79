"""Histories of many users from a file, and lists for them in another that a killed run goes on with."""

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from data_processing.parts.columns import ReadSettings, find_column
from data_processing.parts.formats import open_table
from data_processing.parts.interactions import Source, read_interactions
from data_processing.parts.tables import workspace
from data_processing.parts.times import seconds
from utils.errors import DiskError, InputError, reason, shown
from utils.files import check_writable, lock, read_json, read_jsonl, resolve_links, save_json
from utils.processes import Stopped

REMEDY = 'Give JSON lines, {"user": "anna", "items": ["B0012", "B0831"]}, or a table with a row for each interaction.'


class History(NamedTuple):
    """A user's items in the order of time."""

    user: Any
    items: list[Any]  # ids


class Reading(NamedTuple):
    """How a table is read, where that is not to be found out; see import_dataset.py's flags of the same names."""

    format: str | None = None
    encoding: str | None = None
    no_quotes: bool = False
    names: list[str] | None = None
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    time_format: list[str] | None = None


FOUND_OUT = Reading()


def read_histories(path: Path, reading: Reading = FOUND_OUT) -> Iterator[History]:
    """Yield the histories of a file: JSON lines with user and items, or a table as import_dataset.py reads it.

    InputError for a damaged file, or a line without user or items; names the line.
    """
    if path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        for number, record in read_jsonl(path, REMEDY):
            user, items = record.get("user"), record.get("items")
            if type(user) not in (int, str) or not isinstance(items, list):
                raise InputError(f"{path}, line {number}: found {shown(record)}, expected user and items. {REMEDY}")
            yield History(user, items)
        return
    settings = ReadSettings("interactions", reading.format, reading.encoding, not reading.no_quotes, reading.names)
    table = open_table(path, settings)
    named = {"user": reading.user_column, "item": reading.item_column, "time": reading.time_column}
    columns = [find_column(table, role, name, optional=role == "time") for role, name in named.items()]
    with tempfile.TemporaryDirectory() as folder, workspace(Path(folder) / "histories", {"file": str(path)}) as tables:
        source = Source(table, *columns, None, time_formats=reading.time_format)
        read_interactions(tables, source, Path(folder))
        time = "" if source.time is None else f"{seconds(tables, source.time_formats)}, "
        order = f"list(item_name ORDER BY {time}line)"
        for user, items in tables.rows(f"SELECT user_name, {order} FROM interactions GROUP BY 1 ORDER BY min(line)"):
            yield History(user, items)


class Lines(NamedTuple):
    """A file of lines that is being written."""

    done: int  # lines that an earlier run has written
    file: IO[str]

    def earlier(self) -> Iterator[dict[str, Any]]:
        """Yield what the lines say that an earlier run has written."""
        if self.done:
            with open(self.file.name, encoding="utf-8") as written:  # noqa: PTH123  # a second handle
                yield from map(json.loads, itertools.islice(written, self.done))

    def keep(self) -> None:
        """Put what was written on disk: a killed run goes on behind it."""
        self.file.flush()
        if Path(self.file.name).is_file():  # a pipe has nothing to sync
            os.fsync(self.file.fileno())


@contextlib.contextmanager
def resumable_lines(path: Path, job: dict[str, Any], together: int = 1) -> Iterator[Lines]:
    """Open a file for lines; it gets its name when the block ends without an error.

    A run that is killed leaves a hidden file beside it, behind whose whole lines the next run of the same `job` goes
    on; another job starts anew. Of lines that are made some `together`, those of a group that is not whole are made
    again, since what is computed with others may differ in the last digits.

    Raises:
        InputError: another run is writing there.
        DiskError: no space.
    """
    path = resolve_links(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # a device or pipe
        with path.open("w", encoding="utf-8") as file:
            yield Lines(0, file)
        return
    partial, notes = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.partial.json")
    check_writable(path)
    try:
        with partial.open("a+", encoding="utf-8") as file:
            busy = f"{partial}: another run is writing here. Wait for it, or name another place."
            lock(file.fileno(), busy)
            if not partial.exists() or not os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                raise InputError(busy)  # it has ended between the two
            if read_json(notes, missing_ok=True) != json.loads(json.dumps(job)):
                file.truncate(0)
                save_json(notes, job)
            lines = Lines(_keep_whole_lines(file, together), file)
            try:
                yield lines
            except (DiskError, Stopped):
                raise
            except (InputError, ValueError):  # the same input would fail again
                partial.unlink()
                notes.unlink()
                raise
            lines.keep()
            partial.replace(path)
            notes.unlink()
    except OSError as error:
        raise DiskError(
            f"{path} could not be written ({reason(error)}). Free some space, or name another place."
        ) from error


def _keep_whole_lines(file: IO[str], together: int) -> int:
    """Cut a file behind its last whole group of whole lines, and count the lines that are left."""
    done, end, read, size = 0, 0, 0, 0
    with open(file.name, "rb") as written:  # noqa: PTH123  # a second handle, which counts bytes
        for line in written:
            if line.endswith(b"\n"):
                read, size = read + 1, size + len(line)
                if read % together == 0:
                    done, end = read, size
    file.truncate(end)
    file.seek(0, os.SEEK_END)
    return done
