"""Files of interactions and items as other programs write them: which format, which columns, and what is wrong where.

Each format becomes a `Table`: SQL that reads the file, and the SQL of each of its columns. DuckDB reads; where it
refuses, the file is gone through again line by line, to name the line.
"""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import duckdb

from utils.errors import InputError
from utils.files import read_jsonl, require_file
from utils.tables import Tables, first_line, is_of_the_file

FORMATS = ("csv", "tsv", "parquet", "jsonl", "recbole", "ml-100k", "ml-1m")
REMEDY = "See import_dataset.py --help for the files that it reads."
PEEKED = 1 << 16  # bytes looked at to tell a format
PEEKED_LINES = 1000  # of JSON lines, looked at for names of fields
DAMAGED = (OSError, EOFError, zlib.error)  # what reading a compressed file that is not whole raises
LONGEST_NAME, MOST_NAMES = 40, 30  # of columns, in messages
FIELD_LIMIT = 1 << 30  # characters of a CSV field that the search for a bad line accepts

USUAL_NAMES = {  # without case and without _ - and space
    "user": ("user", "userid", "uid", "reviewerid", "visitorid", "sessionid", "customerid", "memberid", "accountid"),
    "item": (
        *("item", "itemid", "iid", "movieid", "asin", "parentasin", "productid", "articleid", "bookid", "businessid"),
        *("gameid", "appid", "songid", "trackid", "artistid", "newsid", "videoid", "sku"),
    ),
    "time": ("time", "timestamp", "ts", "date", "datetime", "createdat", "eventtime", "unixreviewtime", "tdat"),
}
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


class Layout(NamedTuple):
    """How a line of text is cut into columns."""

    delimiter: str
    quotes: bool = False  # whether a field may stand in quotation marks
    names: tuple[str, ...] | None = None  # of the columns, where no first line has them
    blank: int = 0  # lines in front of the one with the names, which DuckDB would take for it


RATINGS = ("user_id", "item_id", "rating", "timestamp")
MOVIELENS = {
    ("ml-100k", "interactions"): Layout("\t", names=RATINGS),
    ("ml-100k", "items"): Layout("|", names=("item_id", "title", "release_date", "video_date", "url", *GENRES)),
    ("ml-1m", "interactions"): Layout("::", names=RATINGS),
    ("ml-1m", "items"): Layout("::", names=("item_id", "title", "genres")),
}


class Column(NamedTuple):
    """The SQL of a column."""

    text: str  # as VARCHAR
    json: str  # as JSON, in which lists and objects keep their form


class Table(NamedTuple):
    """A file and how to read it."""

    path: Path
    format: str
    encoding: str
    layout: Layout | None  # of delimited text
    columns: dict[str, Column]
    texts: tuple[str, ...]  # names of the columns that may describe an item


def open_table(path: Path, role: str, kind: str | None, encoding: str | None, quotes: bool = True) -> Table:
    """Look at a file's beginning: its format and its columns.

    Args:
        path: the file.
        role: "interactions" or "items".
        kind: one of FORMATS; None to tell it by the file's name and content.
        encoding: of its text; None for UTF-8, or what the format has.
        quotes: whether fields of CSV and TSV may stand in quotation marks.

    Raises:
        InputError: missing, empty or damaged file, an unknown form, or text in another encoding.
    """
    require_file(path, REMEDY)
    start = peek(path)
    kind = kind or guess_format(path, start)
    if kind == "parquet":
        columns = parquet_columns(path)
        return Table(path, kind, "utf-8", None, columns, tuple(columns))
    if encoding is None:
        encoding = default_encoding(path, role, kind)
    if kind == "jsonl":
        # DuckDB takes no byte order mark here.
        encoding = "utf-8-sig" if start.startswith(codecs.BOM_UTF8) else encoding
        columns = {name: json_column(name) for name in json_names(path, encoding)}
        return Table(path, kind, encoding, None, columns, tuple(columns))
    return delimited(path, role, kind, encoding, quotes, start)


def peek(path: Path) -> bytes:
    """The first bytes of a file, unpacked where its name ends in .gz.

    Raises:
        InputError: an empty file, an archive, or a name that does not fit the content.
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
    """Open for reading, unpacked where the name ends in .gz."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def guess_format(path: Path, start: bytes) -> str:
    """One of FORMATS, by the file's name or, where that says nothing, by its first line."""
    name = path.name.lower().removesuffix(".gz")
    if start.startswith(b"PAR1") or name.endswith((".parquet", ".pq")):
        return "parquet"
    if name in ("u.data", "u.item"):
        return "ml-100k"
    for kind, endings in {"jsonl": (".jsonl", ".ndjson", ".json"), "recbole": (".inter", ".item")}.items():
        if name.endswith(endings):
            return kind
    if name.endswith((".csv", ".tsv")):
        return name[-3:]
    line = first_of(start.removeprefix(codecs.BOM_UTF8).decode("latin-1"))
    signs = {
        "jsonl": line.startswith("{"),
        "recbole": re.search(r":token\b", line),
        "ml-1m": line.count("::") > 1,
        "ml-100k": re.fullmatch(r"\d+\t\d+\t\d+\t\d+|\d+(\|[^|]*){4}(\|[01]){19}", line),
        "tsv": "\t" in line,
    }
    return next((kind for kind, found in signs.items() if found), "csv")


def first_of(text: str) -> str:
    """The first line that is not blank."""
    return re.split(r"[\r\n]", text.lstrip())[0]


def default_encoding(path: Path, role: str, kind: str) -> str:
    """UTF-8; of MovieLens' titles Latin-1 where they are no UTF-8, as the later releases are."""
    if kind in ("ml-100k", "ml-1m") and role == "items":
        try:
            with open_bytes(path) as file, contextlib.suppress(*DAMAGED):  # reading it will name the place
                file.read().decode()
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8"


def delimited(path: Path, role: str, kind: str, encoding: str, quotes: bool, start: bytes) -> Table:
    """A file of lines cut by a delimiter."""
    text = decode_start(path, encoding, start)
    layout = MOVIELENS.get((kind, role))
    if layout is None:
        quotes = quotes and kind != "recbole"
        delimiter = max(",;\t|", key=first_of(text).count) if kind == "csv" else "\t"
        layout = Layout(delimiter, quotes)
        names = tuple(next(split_lines(io.StringIO(text, newline=""), layout, path))[1])
    else:
        names = layout.names
    blank = len(text[: len(text) - len(text.lstrip("\r\n"))].splitlines())
    columns = {name: Column(f"c{place}", f"to_json(c{place})") for place, name in enumerate(names)}
    called = [plain_name(name) if kind == "recbole" else name for name in names]
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: two columns are called {twice!r}. Rename one of them.")
    columns.pop("", None)  # a nameless column numbers the rows
    texts = tuple(columns)
    if kind == "recbole":
        texts = tuple(plain_name(name) for name in columns if not name.endswith((":float", ":float_seq")))
        columns = {plain_name(name): column for name, column in columns.items()}
    elif names[5:] == GENRES:
        columns = {name: columns[name] for name in names[:5]} | {"genres": genres_column()}
        texts = ("item_id", "title", "genres")
    return Table(path, kind, encoding, layout._replace(names=names, blank=blank), columns, texts)


def decode_start(path: Path, encoding: str, start: bytes) -> str:
    """The first bytes of a file as text.

    Raises:
        InputError: they are no text in this encoding.
    """
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeError as error:
        raise InputError(undecodable(path, error, encoding)) from error
    return text.removeprefix("\ufeff")


def undecodable(path: Path, error: UnicodeError, encoding: str, before: int = 0) -> str:
    """The message for text in another encoding; `before` lines came before what was decoded."""
    found = str(error)
    if isinstance(error, UnicodeDecodeError):
        line = before + error.object[: error.start].count(b"\n") + 1
        found = f"line {line} has {error.object[error.start : error.start + 8]!r}"
    return (
        f"{path} is not {encoding}: {found}. Name the encoding of the file, for example --encoding latin-1, cp1252 or "
        "utf-16; a file that is no text needs --format."
    )


def genres_column() -> Column:
    """The 19 flags of ml-100k as later MovieLens files write genres: Adventure|Animation."""
    flags = ", ".join(f"CASE WHEN c{place} = '1' THEN {literal(name)} END" for place, name in enumerate(GENRES, 5))
    joined = f"array_to_string(list_filter([{flags}], lambda name: name IS NOT NULL), '|')"
    return Column(joined, f"to_json({joined})")


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


def json_names(path: Path, encoding: str) -> list[str]:
    """Names of the fields in the first JSON lines, in order of appearance.

    Raises:
        InputError: a line that is no JSON object.
    """
    with readable(path, encoding, None) as place, naming(path, place):
        try:
            records = [record for _, record in itertools.islice(read_jsonl(place, REMEDY), PEEKED_LINES)]
        except InputError:
            find_undecodable(place)
            raise
    return list(dict.fromkeys(name for record in records for name in record))


def json_column(name: str) -> Column:
    """SQL of a field of JSON lines."""
    pointer = literal("/" + name.replace("~", "~0").replace("/", "~1"))
    return Column(f"json_extract_string(json, {pointer})", f"json_extract(json, {pointer})")


def literal(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def plain_name(name: str) -> str:
    """The name of a RecBole column without its type."""
    return name.split(":")[0]


def find_column(table: Table, role: str, named: str | None, also: tuple[str, ...] = ()) -> str | None:
    """The column of the user, the item or the time: as named by the user, or the one with a usual name.

    Args:
        table: whose columns are searched.
        role: "user", "item" or "time".
        named: its name, None to search for a usual one.
        also: further usual names.

    Raises:
        InputError: no such column, except for the time, or several that may be it; lists the columns.
    """
    there = columns_of(table)
    if named is not None:
        if plain_name(named) not in table.columns and named not in table.columns:
            raise InputError(f"{table.path}: no column {named!r} (--{role}_column). {there}")
        return named if named in table.columns else plain_name(named)
    usual = (*USUAL_NAMES[role], *also)
    found = [name for name in table.columns if re.sub(r"[_\s-]", "", name).lower() in usual]
    if len(found) > 1:
        raise InputError(
            f"{table.path}: the {role} may be {' or '.join(found)}. Name the column with --{role}_column. {there}"
        )
    if not found and role != "time":
        raise InputError(
            f"{table.path} (read as {table.format}): no column has a usual name for the {role}, such as "
            f"{role}_id. Name it with --{role}_column. {there}"
        )
    return found[0] if found else None


def columns_of(table: Table) -> str:
    """A sentence that names the columns of a table."""
    shown = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…" for name in table.columns]
    more = f" and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else ""
    return f"The columns are {', '.join(shown[:MOST_NAMES])}{more}."


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
    with readable(table.path, table.encoding, beside) as place:
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
    return known + [name for (name,) in tables.rows("SELECT name FROM field_names ORDER BY name") if name not in known]


def reader(table: Table, parallel: bool = True) -> str:
    """SQL of the table function, with the path to come; delimited text by one thread where it is not `parallel`."""
    if table.format == "parquet":
        return "read_parquet(?)"
    if table.format == "jsonl":
        return "read_json_objects(?, format = 'newline_delimited')"
    columns = ", ".join(f"c{place}: 'VARCHAR'" for place in range(len(table.layout.names)))
    quote = literal('"' if table.layout.quotes else "")
    header = str((table.format, "items") not in MOVIELENS).lower()
    return (
        f"read_csv(?, auto_detect = false, strict_mode = true, columns = {{{columns}}}, header = {header}, "
        f"skip = {table.layout.blank}, parallel = {parallel}, "
        f"delim = {literal(table.layout.delimiter)}, quote = {quote}, escape = {quote})"
    )


@contextlib.contextmanager
def readable(path: Path, encoding: str, beside: Path | None) -> Iterator[Path]:
    """A path under which the file can be read as UTF-8, and whose name is no pattern for DuckDB.

    A file in another encoding is copied to a hidden folder beside `beside`, or, for None, where temporary files go.

    Raises:
        InputError: it is not in that encoding.
    """
    plain = codecs.lookup(encoding).name == "utf-8"
    if plain and not set("*?[") & set(str(path)):
        yield path
        return
    where = {} if beside is None else {"dir": beside.resolve().parent, "prefix": f".{beside.resolve().name}."}
    if beside is not None:
        beside.resolve().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(suffix=".partial", **where) as folder:
        place = Path(folder) / ("file.gz" if plain and path.suffix == ".gz" else "file")
        if plain:
            place.symlink_to(path.resolve())
        else:
            recode(path, encoding, place)
        yield place


def recode(path: Path, encoding: str, copy: Path) -> None:
    """Copy a text as UTF-8.

    Raises:
        InputError: a damaged file, or it is not in that encoding.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    lines = 0
    with open_bytes(path) as source, copy.open("wb") as target:
        while True:
            try:
                block = source.read(PEEKED)
                text = decoder.decode(block, final=not block)
            except UnicodeError as error:
                raise InputError(undecodable(path, error, encoding, lines)) from error
            except DAMAGED as error:
                raise InputError(f"{path}, after line {lines}: cannot be read ({error}). Fetch it again.") from error
            target.write(text.encode())
            lines += text.count("\n")
            if not block:
                return


def find_fault(table: Table, place: Path) -> None:
    """InputError naming the first line that cannot be read; nothing where every line can."""
    if table.format == "parquet":
        return
    with naming(table.path, place):
        find_undecodable(place)
        if table.format == "jsonl":
            for _ in read_jsonl(place, REMEDY):
                pass
            return
        width = len(table.layout.names)
        for line, fields in records(table, place):
            if len(fields) != width and not (len(fields) == width + 1 and not fields[-1]):
                raise InputError(
                    f"{place}, line {line}: {len(fields)} columns, expected {width} ({', '.join(table.layout.names)}). "
                    "Put fields that hold the separator in quotation marks, or say what the file is by --format."
                )


@contextlib.contextmanager
def naming(path: Path, place: Path) -> Iterator[None]:
    """Let messages name the user's file, where a copy was read."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(place), str(path))) from error.__cause__


def find_undecodable(place: Path) -> None:
    """InputError naming the first line that is not UTF-8, or behind which a compressed file breaks off."""
    line = 0
    try:
        with open_bytes(place) as file:
            for row in file:
                row.decode()
                line += 1
    except UnicodeError as error:
        raise InputError(undecodable(place, error, "utf-8", line)) from error
    except DAMAGED as error:
        raise InputError(f"{place}, after line {line}: cannot be read ({error}). Fetch it again.") from error


def records(table: Table, place: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, fields) of delimited text, without the line of names and without blank lines."""
    with open_bytes(place) as file:
        rows = split_lines(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), table.layout, place)
        yield from rows if (table.format, "items") in MOVIELENS else itertools.islice(rows, 1, None)


def split_lines(lines: Iterator[str], layout: Layout, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, fields) of lines that are not blank.

    Raises:
        InputError: a quotation mark without its other half; names the line where the row begins.
    """
    if not layout.quotes:
        for number, line in enumerate(lines, start=1):
            if line.strip("\r\n"):
                yield number, line.rstrip("\r\n").split(layout.delimiter)
        return
    csv.field_size_limit(min(FIELD_LIMIT, sys.maxsize))
    rows = csv.reader(lines, delimiter=layout.delimiter, strict=True)
    while True:
        number = rows.line_num + 1
        try:
            fields = next(rows, None)
        except csv.Error as error:
            raise InputError(
                f"{path}, line {number}: {unquoted(error)}. Close the quotation marks of the field, and double those "
                "inside it; or pass --no_quotes, where quotation marks are ordinary characters."
            ) from error
        if fields is None:
            return
        if fields:
            yield number, fields


def unquoted(error: csv.Error) -> str:
    """What csv found, in words."""
    if "unexpected end" in str(error):
        return "a quotation mark opens a field and nothing closes it"
    return f"quotation marks that do not enclose a whole field ({error})"


def place_of(table: Table, row: int, beside: Path) -> str:
    """Where a user finds the row with this number from 1: file and line."""
    if table.format == "parquet":
        return f"{table.path}, row {row}"
    with readable(table.path, table.encoding, beside) as place:
        lines: Iterator[tuple[int, Any]] = (
            read_jsonl(place, REMEDY) if table.format == "jsonl" else records(table, place)
        )
        line, _ = next(itertools.islice(lines, row - 1, None))
    return f"{table.path}, line {line}"
