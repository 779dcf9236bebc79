"""Tables larger than memory, grouped and sorted by DuckDB, in a workspace that survives a killed run.

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
from utils.files import check_writable, identity, resolve_links

MEMORY = 3.0  # GiB that DuckDB may hold before it spills; Python and its own overhead come on top
FETCHED = 1 << 16  # rows fetched at once


class Tables:
    """A DuckDB database whose tables are made only once: the next run of a job that was killed finds them."""

    def __init__(self, connection: duckdb.DuckDBPyConnection):
        self.connection = connection

    def make(self, name: str, query: str, *parameters: Any) -> int:
        """Create the table `name` from a query, unless an earlier run has; returns its number of rows."""
        self.connection.execute(f"CREATE TABLE IF NOT EXISTS {name} AS {query}", parameters)
        return self.count(name)

    def count(self, rows: str) -> int:
        """The number of rows of a table, or of what else may follow FROM in SQL."""
        return self.value(f"SELECT count(*) FROM {rows}")

    def value(self, query: str, *parameters: Any) -> Any:
        """The first value of a query's first row; None where there is no row."""
        row = self.connection.execute(query, parameters).fetchone()
        return row[0] if row else None

    def rows(self, query: str, *parameters: Any) -> Iterator[tuple]:
        """Yield the rows of a query; only some of them are in memory."""
        result = self.connection.cursor().execute(query, parameters)
        while rows := result.fetchmany(FETCHED):
            yield from rows

    def columns(self, query: str, *parameters: Any) -> dict[str, np.ndarray]:
        """The result of a query as column name -> array; for numbers, which have to fit into memory."""
        return self.connection.execute(query, parameters).fetchnumpy()


@contextlib.contextmanager
def workspace(output: Path, job: dict[str, Any], memory: float = MEMORY) -> Iterator[Tables]:
    """Open the tables of a job, which are kept if the job is killed, and removed when it ends.

    Args:
        output: what the job makes; the tables lie in a hidden file beside it.
        job: what decides the tables' contents; tables of another job are thrown away.
        memory: GiB that DuckDB may hold before it uses the disk.

    Raises:
        InputError: another run is at work there.
        DiskError: the disk is full.
    """
    output = resolve_links(output)
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
        remove_database(path)
        raise
    except duckdb.Error as error:
        raise DiskError(
            f"{output}: {first_line(error)}. Free some space on the disk, or give more --memory; a next run goes on "
            "where this one stopped."
        ) from error
    finally:
        connection.close()
    remove_database(path)


def _connect(path: Path, job: str) -> duckdb.DuckDBPyConnection:
    """Open the database that an earlier run of this job has left, or a new one."""
    connection = duckdb.connect(str(path))
    connection.execute("CREATE TABLE IF NOT EXISTS job (text VARCHAR)")
    found = connection.execute("SELECT text FROM job").fetchall()
    if found == [(job,)]:
        return connection
    if found:
        connection.close()
        remove_database(path)
        return _connect(path, job)
    connection.execute("INSERT INTO job VALUES (?)", [job])
    return connection


def remove_database(path: Path) -> None:
    """Remove a database with what DuckDB keeps beside it."""
    for name in (path.name, f"{path.name}.wal"):
        path.with_name(name).unlink(missing_ok=True)


def file_key(path: Path) -> list[Any]:
    """Path and `identity` of a file, as part of a job: tables are kept only for the very same file."""
    return [str(path.resolve()), *identity(path)]


def is_bad_file(error: duckdb.Error, path: Path) -> bool:
    """Whether DuckDB failed because of what a file holds, and not, for example, because the disk is full."""
    damaged = isinstance(error, duckdb.InvalidInputException) or type(error) is duckdb.Error  # the latter of Parquet
    return damaged or str(path) in str(error) or "gzip" in str(error).lower()


def first_line(error: Exception) -> str:
    """The first line of a message of DuckDB; what may follow is advice about DuckDB."""
    return str(error).strip().splitlines()[0].rstrip(". ")
