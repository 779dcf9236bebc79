"""Files of interactions and items as other programs write them: which format, which columns, and what is wrong where.

Each format becomes a `Table`: SQL that reads the file, and the SQL of each of its columns. DuckDB reads; where it
refuses, the file is gone through again line by line, to name the lines.
"""

import codecs
import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from data_processing.parts.columns import Column, Table, clean, clean_names, literal
from data_processing.parts.delimited import delimited, first_of, fits, records
from data_processing.parts.tables import Tables, first_line, is_of_the_file
from data_processing.parts.text_files import (
    DAMAGED,
    REMEDY,
    REWRITES,
    decoded,
    find_undecodable,
    naming,
    open_bytes,
    peek,
    readable,
    rewritten,
    some,
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
READERS = {  # DuckDB's, of files that have the names of their columns or fields
    "parquet": "read_parquet(?)",
    "jsonl": "read_json_objects(?, format = 'newline_delimited')",
    "python": "read_json_objects(?, format = 'newline_delimited')",
    "json": "read_json_objects(?, format = 'array')",
}
PEEKED_RECORDS = 1000  # looked at for names of fields


def open_table(
    path: Path, role: str, kind: str | None, encoding: str | None, quotes: bool = True, names: list[str] | None = None
) -> Table:
    """Look at a file's beginning: its format and its columns.

    Args:
        path: the file.
        role: "interactions" or "items".
        kind: one of FORMATS; None to tell it by the file's name and content.
        encoding: of its text; None for UTF-8, or what the format has.
        quotes: whether fields of CSV and TSV may stand in quotation marks.
        names: of the columns, where the first line has none.

    Raises:
        InputError: missing, empty or damaged file, an unknown form, or text in another encoding.
    """
    require_file(path, REMEDY)
    start = peek(path)
    kind = kind or guess_format(path, start)
    if encoding is None or kind == "parquet":
        encoding = default_encoding(path, role, kind)
    if kind not in READERS:
        return delimited(path, role, kind, encoding, quotes, start, names)
    if names is not None:
        flag = "--names" if role == "interactions" else "--item_names"
        raise InputError(f"{flag} is for text in columns; {path} is read as {kind} and has names. Leave it out.")
    if kind != "parquet" and start.startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"  # DuckDB takes no byte order mark here
    columns = parquet_columns(path) if kind == "parquet" else json_columns(path, kind, encoding)
    columns = dict(zip(clean_names(path, list(columns)), columns.values(), strict=True))
    return Table(path, kind, encoding, None, columns, tuple(columns), "python" if kind == "python" else None)


def guess_format(path: Path, start: bytes) -> str:
    """One of FORMATS, by the file's name or, where that says nothing, by its first line."""
    name = path.name.lower().removesuffix(".gz")
    ending = next((kind for kind, endings in ENDINGS.items() if name.endswith(endings)), None)
    line = first_of(start.removeprefix(codecs.BOM_UTF8).decode("latin-1"))
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
    """UTF-8; of MovieLens' titles Latin-1 where they are no UTF-8, as the later releases are."""
    if kind in ("ml-100k", "ml-1m") and role == "items":
        try:
            with open_bytes(path) as file, contextlib.suppress(*DAMAGED):  # reading it will name the place
                file.read().decode()
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8"


def parquet_columns(path: Path) -> dict[str, Column]:
    """The columns of a Parquet file.

    Raises:
        InputError: a damaged file.
    """
    try:
        with readable(path, "utf-8", None) as place, duckdb.connect() as connection:
            found = connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(place)]).fetchall()
    except duckdb.Error as error:
        raise InputError(f"{path} is not a whole Parquet file ({reason(error)}). {REMEDY}") from error
    return {name: parquet_column(name, kind) for name, kind, *_ in found}


def parquet_column(name: str, kind: str) -> Column:
    """SQL of a Parquet column; whole numbers that were stored as floats, for want of an empty integer, are whole."""
    quoted = '"' + name.replace('"', '""') + '"'
    if kind in ("FLOAT", "DOUBLE"):
        whole = f"WHEN {quoted} = trunc({quoted}) AND abs({quoted}) < 1e15 THEN {quoted}::BIGINT::VARCHAR"
        return Column(f"CASE {whole} WHEN isfinite({quoted}) THEN {quoted}::VARCHAR END", f"to_json({quoted})")
    return Column(f"{quoted}::VARCHAR", f"to_json({quoted})")


def json_columns(path: Path, kind: str, encoding: str) -> dict[str, Column]:
    """The fields of the first records, in order of appearance.

    Raises:
        InputError: no fields, or a line that is no JSON object.
    """
    names = list(dict.fromkeys(name for record in first_records(path, kind, encoding) for name in record))
    if not names:
        raise InputError(
            f'{path} (read as {kind}): no object with fields, such as {{"user": "x", "item": "a"}}. {REMEDY}'
        )
    return {name: json_column(name) for name in names}


def first_records(path: Path, kind: str, encoding: str) -> list[dict[str, Any]]:
    """Some of the objects in a file of JSON or Python literals, at least with the names of their fields."""
    if kind == "python":
        lines = rewritten(path, decoded(path, encoding), REWRITES["python"])
        return list(itertools.islice((json.loads(line) for line in lines if line.strip()), PEEKED_RECORDS))
    with readable(path, encoding, None) as place, naming(path, place):
        try:
            if kind == "jsonl":
                return [record for _, record in itertools.islice(read_jsonl(place, REMEDY), PEEKED_RECORDS)]
            query = f"SELECT json_keys(json) FROM {READERS[kind]} LIMIT {PEEKED_RECORDS}"
            with duckdb.connect() as connection:
                return [dict.fromkeys(keys) for (keys,) in connection.execute(query, [str(place)]).fetchall()]
        except (InputError, duckdb.Error) as error:
            find_undecodable(place)
            if isinstance(error, InputError):
                raise named_lines(place, error) from error
            raise InputError(f"{path} cannot be read as {kind}: {reason(error)}. Save it again.") from error


def json_column(name: str) -> Column:
    """SQL of a field of JSON lines."""
    pointer = literal("/" + name.replace("~", "~0").replace("/", "~1"))
    return Column(f"json_extract_string(json, {pointer})", f"json_extract(json, {pointer})")


def read_table(tables: Tables, name: str, select: str, table: Table, beside: Path) -> None:
    """Make the table `name` from a file.

    Args:
        tables: where to.
        name: of the table to make.
        select: SQL of its columns; row_number() OVER () is a row's place in the file.
        table: the file.
        beside: files are written beside this path while a text in another encoding is read.

    Raises:
        InputError: the file is damaged; names the line.
    """
    with readable(table.path, table.encoding, beside, table.rewrite) as place:
        for parallel in (True, False):
            try:
                tables.make(name, f"SELECT {select} FROM {reader(table, parallel)}", str(place))
                return
            except duckdb.Error as error:
                if not is_of_the_file(error, place):
                    raise
                find_fault(table, place)
                if parallel and table.layout:
                    continue  # a thread that begins inside a field with line breaks may take these for rows
                raise InputError(
                    f"{table.path} cannot be read as {table.format}: {reason(error)}. Save it again."
                ) from error


def reason(error: duckdb.Error) -> str:
    """What DuckDB found, in few words."""
    if "state machine" in str(error):
        return "its lines end in more than one way, or a field has a line break; expected \\n or \\r\\n"
    if "aximum line size" in str(error):
        return "a line is longer than 2 MB, as when nothing closes a quotation mark"
    return first_line(error).split("Error: ", 1)[-1]


def field_names(tables: Tables, table: Table, beside: Path) -> list[str]:
    """Names of all fields that a whole file of JSON lines has: those of the first lines, then the others by name."""
    known = list(table.columns)
    read_table(tables, "field_names", "DISTINCT unnest(json_keys(json)) AS name", table, beside)
    return known + [
        name for (name,) in tables.rows("SELECT name FROM field_names ORDER BY name") if clean(name) not in known
    ]


def reader(table: Table, parallel: bool = True) -> str:
    """SQL of the table function, with the path to come; delimited text by one thread where it is not `parallel`."""
    if table.format in READERS:
        return READERS[table.format]
    columns = ", ".join(f"c{place}: 'VARCHAR'" for place in range(len(table.layout.names)))
    quote = literal('"' if table.layout.quotes else "")
    return (
        f"read_csv(?, auto_detect = false, strict_mode = true, columns = {{{columns}}}, "
        f"header = {table.layout.header}, skip = {table.layout.blank}, parallel = {parallel}, "
        f"delim = {literal(table.layout.delimiter)}, quote = {quote}, escape = {quote})"
    )


def find_fault(table: Table, place: Path) -> None:
    """InputError naming the first lines that cannot be read; nothing where every line can."""
    if table.format == "parquet":
        return
    with naming(table.path, place):
        find_undecodable(place)
        if table.format == "json":
            return
        if table.format in READERS:
            try:
                for _ in read_jsonl(place, REMEDY):
                    pass
            except InputError as error:
                raise named_lines(place, error) from error
            return
        width = len(table.layout.names)
        bad = [(line, len(fields)) for line, fields in records(table, place) if not fits(fields, width)]
        if bad:
            raise InputError(
                f"{place}, {some([line for line, _ in bad])}: {bad[0][1]} columns, expected {width} "
                f"({', '.join(table.layout.names)}). Put fields that hold the separator in quotation marks, or say "
                "what the file is by --format."
            )


def named_lines(place: Path, error: InputError) -> InputError:
    """The error of the first line that is no JSON object, with the next ones named too."""

    def is_object(line: bytes) -> bool:
        try:
            return isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            return False

    with open_bytes(place) as lines:
        bad = [number for number, line in enumerate(lines, start=1) if line.strip() and not is_object(line)]
    return InputError(str(error).replace(f", line {bad[0]}:", f", {some(bad)}:", 1)) if bad else error


def places_of(table: Table, rows: list[int], count: int, beside: Path) -> str:
    """Where a user finds `count` rows, of which these are the first, numbered from 1: file and lines."""
    what = {"parquet": "row", "json": "element"}.get(table.format, "line")
    if what != "line":
        return f"{table.path}, {some(rows, count, what)}"
    with readable(table.path, table.encoding, beside, table.rewrite) as place:
        lines: Iterator[tuple[int, Any]] = records(table, place) if table.layout else read_jsonl(place, REMEDY)
        wanted = set(rows)
        found = (line for row, (line, _) in enumerate(lines, start=1) if row in wanted)
        return f"{table.path}, {some(list(itertools.islice(found, len(wanted))), count)}"


def place_of(table: Table, row: int, beside: Path) -> str:
    """The same of one row."""
    return places_of(table, [row], 1, beside)
