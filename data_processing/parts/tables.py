"""Grouping and sorting of tables larger than memory, by DuckDB, in a workspace that survives a killed run.

Measured against Polars and chosen in docs/scale.md: it spills to disk within a memory limit, keeps finished tables, and
reads JSON lines, CSV and Parquet.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from utils.errors import DiskError, InputError
from utils.files import check_writable, identity, resolved

MEMORY = 3.0  # GiB that DuckDB may hold before it spills; Python and its own overhead come on top
FETCHED = 1 << 16  # rows fetched at once


class Tables:
    """A DuckDB database whose tables are made once: a second run of the same job finds them."""

    def __init__(self, connection: duckdb.DuckDBPyConnection):
        self.connection = connection

    def make(self, name: str, query: str, *parameters: Any) -> int:
        """Create the table `name` from a query unless an earlier run has; returns its number of rows."""
        self.connection.execute(f"CREATE TABLE IF NOT EXISTS {name} AS {query}", parameters)
        return self.value(f"SELECT count(*) FROM {name}")

    def value(self, query: str, *parameters: Any) -> Any:
        """The one value that a query gives; None where it gives no row."""
        row = self.connection.execute(query, parameters).fetchone()
        return row[0] if row else None

    def rows(self, query: str, *parameters: Any) -> Iterator[tuple]:
        """The rows of a query, a few at a time."""
        result = self.connection.cursor().execute(query, parameters)
        while rows := result.fetchmany(FETCHED):
            yield from rows

    def columns(self, query: str, *parameters: Any) -> dict[str, np.ndarray]:
        """The result of a query as one array per column; for numbers, which fit into memory."""
        return self.connection.execute(query, parameters).fetchnumpy()


@contextlib.contextmanager
def workspace(output: Path, job: dict[str, Any], memory: float = MEMORY) -> Iterator[Tables]:
    """Tables for as long as a job takes, kills and restarts included; removed at its end.

    Args:
        output: what the job makes; the tables lie beside it, in a hidden file, and so does what memory has no room for.
        job: what decides the tables' contents; those of another job are thrown away.
        memory: GiB that DuckDB may hold.

    Raises:
        InputError: another run is at work there.
        DiskError: there is no room.
    """
    output = resolved(output)
    path = output.with_name(f".{output.name}.duckdb")
    check_writable(path)
    try:
        connection = _connect(path, json.dumps({**job, "duckdb": duckdb.__version__}, sort_keys=True, default=str))
    except duckdb.Error as error:
        raise InputError(
            f"{path} cannot be opened ({first_line(error)}). If another run is at work there, wait for it; if not, "
            "delete the file."
        ) from error
    try:
        connection.execute(f"SET memory_limit = '{memory}GiB'")
        yield Tables(connection)
    except DiskError:
        raise
    except InputError:  # the same input would fail again
        connection.close()
        remove(path)
        raise
    except duckdb.Error as error:
        raise DiskError(
            f"{output}: {first_line(error)}. Free some space on the disk, or give more --memory; a next run goes on "
            "where this one stopped."
        ) from error
    finally:
        connection.close()
    remove(path)


def _connect(path: Path, job: str) -> duckdb.DuckDBPyConnection:
    """The database of this job, or a new one."""
    connection = duckdb.connect(str(path))
    connection.execute("CREATE TABLE IF NOT EXISTS job (text VARCHAR)")
    found = connection.execute("SELECT text FROM job").fetchall()
    if found == [(job,)]:
        return connection
    if found:
        connection.close()
        remove(path)
        connection = duckdb.connect(str(path))
        connection.execute("CREATE TABLE job (text VARCHAR)")
    connection.execute("INSERT INTO job VALUES (?)", [job])
    return connection


def remove(path: Path) -> None:
    """Remove a database with what DuckDB keeps beside it."""
    for name in (path.name, f"{path.name}.wal"):
        path.with_name(name).unlink(missing_ok=True)


def source(path: Path) -> list[Any]:
    """What tells whether a file is still the one that tables were made from."""
    return [str(path.resolve()), *identity(path)]


def is_of_the_file(error: duckdb.Error, path: Path) -> bool:
    """Whether DuckDB failed for what a file holds, and not, for example, for want of room."""
    damaged = isinstance(error, duckdb.InvalidInputException) or type(error) is duckdb.Error  # the latter of Parquet
    return damaged or str(path) in str(error) or "gzip" in str(error).lower()


def first_line(error: Exception) -> str:
    """Of a message of DuckDB, which may go on with its own advice."""
    return str(error).strip().splitlines()[0].rstrip(". ")
