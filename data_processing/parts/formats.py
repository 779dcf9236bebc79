"""The formats of other programs' files: how a file's format is recognised, and how a file is read.

Each file becomes a `Table`: SQL that reads the file, and the SQL of each of its columns. DuckDB reads it. Where DuckDB
refuses a file, Python goes through it again line by line, to name the lines that are wrong.
"""

import codecs
import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from data_processing.parts.columns import Column, ReadSettings, Table, clean, clean_names, identifier, literal
from data_processing.parts.delimited import delimited_table, first_filled_line, has_width, read_rows
from data_processing.parts.tables import Tables, first_line, is_bad_file
from data_processing.parts.text_files import (
    DAMAGED,
    EXAMPLES,
    REMEDY,
    REWRITES,
    decode_blocks,
    list_numbers,
    open_bytes,
    original_path_in_errors,
    peek,
    readable_path,
    refuse_undecodable,
    rewrite_lines,
)
from utils.errors import InputError
from utils.files import read_jsonl, require_file

FORMATS = ("csv", "tsv", "blanks", "parquet", "jsonl", "json", "python", "recbole", "ml-100k", "ml-1m", "mind")
ENDINGS = {
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "recbole": (".inter", ".item"),
    "csv": (".csv",),
    "tsv": (".tsv",),
}
READERS = {  # DuckDB's table functions, for files that have the names of their columns or fields
    "parquet": "read_parquet(?)",
    "jsonl": "read_json_objects(?, format = 'newline_delimited')",
    "python": "read_json_objects(?, format = 'newline_delimited')",
    "json": "read_json_objects(?, format = 'array')",
}
PEEKED_RECORDS = 1000  # are read to find the names of fields


def open_table(path: Path, settings: ReadSettings) -> Table:
    """Find the format and the columns of a file by its beginning.

    Raises:
        InputError: missing, empty or damaged file, an unknown form, or text in another encoding.
    """
    require_file(path, REMEDY)
    start = peek(path)
    kind, encoding = settings.format or guess_format(path, start), settings.encoding
    if encoding is None or kind == "parquet":
        encoding = default_encoding(path, settings.role, kind)
    if kind not in READERS:
        return delimited_table(path, replace(settings, format=kind, encoding=encoding))
    if settings.names is not None:
        raise InputError(
            f"{settings.names_flag} is for text in columns; {path} is read as {kind} and has names. Leave it out."
        )
    if kind != "parquet" and start.startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"  # DuckDB takes no byte order mark here
    columns = parquet_columns(path) if kind == "parquet" else json_columns(path, kind, encoding)
    columns = dict(zip(clean_names(path, list(columns)), columns.values(), strict=True))
    return Table(path, kind, encoding, None, columns, tuple(columns), "python" if kind == "python" else None)


def guess_format(path: Path, start: bytes) -> str:
    """Guess the format, one of FORMATS, by the file's name or, where that says nothing, by its first line."""
    name = path.name.lower().removesuffix(".gz")
    ending = next((kind for kind, endings in ENDINGS.items() if name.endswith(endings)), None)
    line = first_filled_line(start.removeprefix(codecs.BOM_UTF8).decode("latin-1"))
    mind = {"behaviors.tsv": r"\d+\tU\d+\t\d+/\d+/\d+ .*", "news.tsv": r"N\d+(\t[^\t]*){7}"}
    ml_100k = r"\d+\t\d+\t\d+\t\d+|\d+(\|[^|]*){4}(\|[01]){19}"
    signs = {
        "ml-100k": name in ("u.data", "u.item") or (ending is None and re.fullmatch(ml_100k, line)),
        "parquet": ending == "parquet" or start.startswith(b"PAR1"),
        "mind": name in mind and re.fullmatch(mind[name], line),
        "python": ending in (None, "jsonl") and re.match(r"\{\s*u?'", line),
        "json": ending in (None, "jsonl") and line.startswith("["),
        "jsonl": ending == "jsonl" or (ending is None and line.startswith("{")),
        "recbole": ending == "recbole" or (ending is None and re.search(r":token\b", line)),
        "blanks": not re.search(r"[,;|\t]|::", line) and len(line.split()) > 1,
        "csv": ending == "csv",
        "tsv": ending == "tsv",
        "ml-1m": line.count("::") > 1,
    }
    return next((kind for kind, found in signs.items() if found), "tsv" if "\t" in line else "csv")


def default_encoding(path: Path, role: str, kind: str) -> str:
    """UTF-8; for the titles of MovieLens Latin-1, unless they are UTF-8, as in the later releases."""
    if kind in ("ml-100k", "ml-1m") and role == "items":
        try:
            with open_bytes(path) as file, contextlib.suppress(*DAMAGED):  # reading the table will name the line
                file.read().decode()
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8"


def parquet_columns(path: Path) -> dict[str, Column]:
    """Read the columns of a Parquet file; raise InputError if it is damaged."""
    try:
        with readable_path(path, "utf-8", None) as readable, duckdb.connect() as connection:
            found = connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(readable)]).fetchall()
    except duckdb.Error as error:
        raise InputError(f"{path} is not a whole Parquet file ({duckdb_reason(error)}). {REMEDY}") from error
    return {name: parquet_column(name, kind) for name, kind, *_ in found}


def parquet_column(name: str, kind: str) -> Column:
    """SQL of a Parquet column; whole numbers that are stored as floats, because some are missing, are read as such."""
    quoted = identifier(name)
    if kind in ("FLOAT", "DOUBLE"):
        whole = f"WHEN {quoted} = trunc({quoted}) AND abs({quoted}) < 1e15 THEN {quoted}::BIGINT::VARCHAR"
        return Column(f"CASE {whole} WHEN isfinite({quoted}) THEN {quoted}::VARCHAR END", f"to_json({quoted})")
    return Column(f"{quoted}::VARCHAR", f"to_json({quoted})")


def json_columns(path: Path, kind: str, encoding: str) -> dict[str, Column]:
    """The fields of the first records of JSON or Python literals, in order of appearance.

    Raises:
        InputError: no fields, or a line that is no object.
    """
    names = list(dict.fromkeys(name for record in first_records(path, kind, encoding) for name in record))
    if not names:
        raise InputError(
            f'{path} (read as {kind}): no object with fields, such as {{"user": "x", "item": "a"}}. {REMEDY}'
        )
    return {name: json_column(name) for name in names}


def first_records(path: Path, kind: str, encoding: str) -> list[dict[str, Any]]:
    """The first objects in a file of JSON or Python literals; of a JSON array only the names of their fields."""
    if kind == "python":
        lines = rewrite_lines(path, decode_blocks(path, encoding), REWRITES["python"])
        return list(itertools.islice((json.loads(line) for line in lines if line.strip()), PEEKED_RECORDS))
    with readable_path(path, encoding, None) as readable, original_path_in_errors(path, readable):
        try:
            if kind == "jsonl":
                return [record for _, record in itertools.islice(read_jsonl(readable, REMEDY), PEEKED_RECORDS)]
            query = f"SELECT json_keys(json) FROM {READERS[kind]} LIMIT {PEEKED_RECORDS}"
            with duckdb.connect() as connection:
                return [dict.fromkeys(keys) for (keys,) in connection.execute(query, [str(readable)]).fetchall()]
        except (InputError, duckdb.Error) as error:
            refuse_undecodable(readable)
            if isinstance(error, InputError):
                raise name_all_lines(readable, error) from error
            raise InputError(f"{path} cannot be read as {kind}: {duckdb_reason(error)}. Save it again.") from error


def json_column(name: str) -> Column:
    """SQL of a field of JSON objects."""
    pointer = literal("/" + name.replace("~", "~0").replace("/", "~1"))
    return Column(f"json_extract_string(json, {pointer})", f"json_extract(json, {pointer})")


def read_table(tables: Tables, name: str, select: str, table: Table, output: Path) -> None:
    """Read a file into the table `name`; in the SQL `select` row_number() OVER () is the number of a row in the file.

    Raises:
        InputError: the file is damaged; names the line.
    """
    with readable_path(table.path, table.encoding, output, table.rewrite) as readable:
        for parallel in (True, False):
            try:
                tables.make(name, f"SELECT {select} FROM {table_function(table, parallel)}", str(readable))
                return
            except duckdb.Error as error:
                if not is_bad_file(error, readable):
                    raise
                refuse_bad_lines(table, readable)
                if parallel and table.layout:
                    continue  # a thread that begins inside a field with line breaks may take these for rows
                raise InputError(
                    f"{table.path} cannot be read as {table.format}: {duckdb_reason(error)}. Save it again."
                ) from error


def duckdb_reason(error: duckdb.Error) -> str:
    """What DuckDB found, in a few words."""
    if "state machine" in str(error):
        return "its lines end in more than one way, or a field has a line break; expected \\n or \\r\\n"
    if "aximum line size" in str(error):
        return "a line is longer than 2 MB, as when nothing closes a quotation mark"
    return first_line(error).split("Error: ", 1)[-1]


def field_names(tables: Tables, table: Table, output: Path) -> list[str]:
    """Names of all fields of a whole file of JSON lines: those of the first records, then the others by name."""
    known = list(table.columns)
    read_table(tables, "field_names", "DISTINCT unnest(json_keys(json)) AS name", table, output)
    return known + [
        name for (name,) in tables.rows("SELECT name FROM field_names ORDER BY name") if clean(name) not in known
    ]


def table_function(table: Table, parallel: bool = True) -> str:
    """SQL of the table function that reads a file, with ? for its path; `parallel` is for delimited text."""
    if table.format in READERS:
        return READERS[table.format]
    columns = ", ".join(f"c{index}: 'VARCHAR'" for index in range(len(table.layout.names)))
    quote = literal('"' if table.layout.quotes else "")
    return (
        f"read_csv(?, auto_detect = false, strict_mode = true, columns = {{{columns}}}, "
        f"header = {table.layout.header}, skip = {table.layout.blank}, parallel = {parallel}, "
        f"delim = {literal(table.layout.delimiter)}, quote = {quote}, escape = {quote})"
    )


def refuse_bad_lines(table: Table, readable: Path) -> None:
    """Raise InputError naming the first lines that cannot be read; return if every line can."""
    if table.format == "parquet":
        return
    with original_path_in_errors(table.path, readable):
        refuse_undecodable(readable)
        if table.format == "json":
            return
        if table.format in READERS:
            try:
                for _ in read_jsonl(readable, REMEDY):
                    pass
            except InputError as error:
                raise name_all_lines(readable, error) from error
            return
        width = len(table.layout.names)
        bad = [(line, len(fields)) for line, fields in read_rows(table, readable) if not has_width(fields, width)]
        if bad:
            raise InputError(
                f"{readable}, {list_numbers([line for line, _ in bad])}: {bad[0][1]} columns, expected {width} "
                f"({', '.join(table.layout.names)}). Put fields that hold the separator in quotation marks, or say "
                "what the file is by --format."
            )


def name_all_lines(readable: Path, error: InputError) -> InputError:
    """Add the following bad lines to the error of the first line that is no JSON object."""

    def is_object(line: bytes) -> bool:
        try:
            return isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            return False

    with open_bytes(readable) as lines:
        bad = [number for number, line in enumerate(lines, start=1) if line.strip() and not is_object(line)]
    return InputError(str(error).replace(f", line {bad[0]}:", f", {list_numbers(bad)}:", 1)) if bad else error


def locate_where(tables: Tables, rows: str, condition: str, table: Table, output: Path) -> str:
    """Where a user finds the rows that meet a condition, in the DuckDB table `rows`; empty if none does."""
    count = tables.count(f"{rows} WHERE {condition}")
    first = tables.rows(f"SELECT line FROM {rows} WHERE {condition} ORDER BY line LIMIT {EXAMPLES}")
    return locate_rows(table, [line for (line,) in first], count, output) if count else ""


def locate_rows(table: Table, rows: list[int], count: int, output: Path) -> str:
    """Where a user finds `count` rows, of which `rows` are the first ones, numbered from 1: the file and the lines."""
    what = {"parquet": "row", "json": "element"}.get(table.format, "line")
    if what != "line":
        return f"{table.path}, {list_numbers(rows, count, what)}"
    with readable_path(table.path, table.encoding, output, table.rewrite) as readable:
        lines: Iterator[tuple[int, Any]] = read_rows(table, readable) if table.layout else read_jsonl(readable, REMEDY)
        wanted = set(rows)
        found = (line for row, (line, _) in enumerate(lines, start=1) if row in wanted)
        return f"{table.path}, {list_numbers(list(itertools.islice(found, len(wanted))), count)}"
