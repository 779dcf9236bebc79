"""Delimited text such as CSV: the delimiter of a file, the names of its columns, and its rows one by one."""

import csv
import io
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from data_processing.parts.columns import (
    KNOWN_NAMES,
    Column,
    Layout,
    ReadSettings,
    Table,
    clean_names,
    folded,
    literal,
    plain_name,
)
from data_processing.parts.text_files import REWRITES, decode_blocks, open_bytes, split_lines
from utils.errors import InputError

FIELD_LIMIT = 1 << 30  # characters of a CSV field that the search for a bad line accepts
DATA = re.compile(r"\s*([-+]?\d+([.,]\d+)?(e[-+]?\d+)?|\d{4}-\d\d?-\d\d?.*|\d\d?[/.]\d\d?[/.]\d{2,4}.*)\s*", re.I)

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
RATINGS = ("user_id", "item_id", "rating", "timestamp")
MOVIES = ("item_id", "title", "release_date", "video_date", "url", *GENRES)
IMPRESSIONS = ("impression_id", "user_id", "time", "history", "impressions")
NEWS = ("news_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
LAYOUTS = {  # of files without a line of names
    ("ml-100k", "interactions"): Layout("\t", names=RATINGS, header=False),
    ("ml-100k", "items"): Layout("|", names=MOVIES, header=False),
    ("ml-1m", "interactions"): Layout("::", names=RATINGS, header=False),
    ("ml-1m", "items"): Layout("::", names=("item_id", "title", "genres"), header=False),
    ("mind", "interactions"): Layout("\t", names=IMPRESSIONS, header=False),
    ("mind", "items"): Layout("\t", names=NEWS, header=False),
}


def delimited_table(path: Path, settings: ReadSettings) -> Table:
    """Find out how a file of delimited text is read; `settings` has its format and encoding.

    Raises:
        InputError: no names of columns, or names that do not match them.
    """
    kind = settings.format
    text = next(decode_blocks(path, settings.encoding)).removeprefix("\ufeff")
    layout = LAYOUTS.get((kind, settings.role))
    rewrite = "blanks" if kind == "blanks" else None
    if layout is None:
        delimiter = max(",;\t|", key=first_filled_line(text).count) if kind == "csv" else "\t"
        layout = Layout(delimiter, settings.quotes and kind not in ("blanks", "recbole"))
        if layout.quotes and has_backslashes(path, settings.encoding, layout):
            rewrite = "backslashes"
    if rewrite:
        text = "\n".join(map(REWRITES[rewrite], text.split("\n")))
    blank = len(text[: len(text) - len(text.lstrip("\r\n"))].splitlines())
    layout = name_columns(path, settings, layout, text)._replace(blank=blank)
    columns, texts = layout_columns(path, kind, layout)
    return Table(path, kind, settings.encoding, layout, columns, texts, rewrite)


def layout_columns(path: Path, kind: str, layout: Layout) -> tuple[dict[str, Column], tuple[str, ...]]:
    """The columns of a layout by name, and the names of those that may describe an item."""
    names = [plain_name(name) for name in layout.names] if kind == "recbole" else list(layout.names)
    columns = {
        name: Column(f"c{index}", f"to_json(c{index})") for index, name in enumerate(clean_names(path, names)) if name
    }  # a nameless column numbers the rows
    texts = tuple(columns)
    if kind == "recbole":
        columns = {name: recbole_column(column.text) for name, column in columns.items()}
        texts = tuple(map(plain_name, (name for name in layout.names if not name.endswith((":float", ":float_seq")))))
    elif layout.names == MOVIES:
        columns = {name: columns[name] for name in names[:5]} | {"genres": genres_column()}
        texts = ("item_id", "title", "genres")
    elif layout.names == IMPRESSIONS:
        columns["clicked"] = clicked_column()
    elif layout.names == NEWS:
        texts = NEWS[:5]
    return columns, texts


def recbole_column(text: str) -> Column:
    """A column of RecBole's files; of the blanks in front of a quotation mark, one is left out.

    export_dataset.py puts it there, as RecBole takes a quotation mark that begins a field for the start of a quotation.
    """
    text = f"CASE WHEN regexp_matches({text}, '^ +\"') THEN {text}[2:] ELSE {text} END"
    return Column(text, f"to_json({text})")


def name_columns(path: Path, settings: ReadSettings, layout: Layout, text: str) -> Layout:
    """The layout with names of columns: those given, those of the format, or those of the first line of `text`.

    Raises:
        InputError: the number of names is not that of the columns, or the first line has no names.
    """
    rows = split_rows(io.StringIO(text, newline=""), layout, path)
    first = next(rows)[1]
    if settings.names is not None:
        if not has_width(first, len(settings.names)):
            raise InputError(
                f"{settings.names_flag} has {len(settings.names)} names, but {path} has {len(first)} columns "
                f"({', '.join(first)}). Name each."
            )
        return layout._replace(names=tuple(settings.names), header=False)
    if layout.names is not None:
        return layout
    if settings.format != "recbole" and looks_like_data(first, rows):
        example = "user item rating time" if settings.role == "interactions" else "item title price"
        raise InputError(
            f"{path}: its first line looks like data, not like names of columns ({', '.join(first)[:200]}). Name each "
            f"of the {len(first)} columns, for example {settings.names_flag} {example}; or put a line with their names "
            "on top."
        )
    return layout._replace(names=tuple(first))


def looks_like_data(first: list[str], rows: Iterator[tuple[int, list[str]]]) -> bool:
    """Whether the first line is data: no field is a usual name, and some are numbers, dates or repeated below."""
    if any(folded(field) in KNOWN_NAMES for field in first):
        return False
    try:
        return any(DATA.fullmatch(field) for field in first) or any(
            field and field == below for _, row in rows for field, below in zip(first, row, strict=False)
        )
    except InputError:  # where the part of the file that was read breaks off
        return False


def has_backslashes(path: Path, encoding: str, layout: Layout) -> bool:
    """Whether quotation marks in fields are written \\": such are there, and the file cannot be read otherwise."""
    blocks = itertools.chain([""], decode_blocks(path, encoding))
    if not any('\\"' in before[-1:] + text for before, text in itertools.pairwise(blocks)):
        return False
    try:
        lines = (line + "\n" for line in split_lines(path, decode_blocks(path, encoding)))
        rows = split_rows(lines, layout, path)
        width = len(next(rows)[1])
        return not all(has_width(fields, width) for _, fields in rows)
    except InputError:
        return True


def has_width(fields: list[str], width: int) -> bool:
    """Whether a line has so many columns; another delimiter may end the line."""
    return len(fields) == width or (len(fields) == width + 1 and not fields[-1])


def first_filled_line(text: str) -> str:
    """The first line that is not blank."""
    return re.split(r"[\r\n]", text.lstrip())[0]


def genres_column() -> Column:
    """The 19 flags of ml-100k in the form of later MovieLens files: Adventure|Animation."""
    flags = ", ".join(f"CASE WHEN c{index} = '1' THEN {literal(name)} END" for index, name in enumerate(GENRES, 5))
    joined = f"array_to_string(list_filter([{flags}], lambda name: name IS NOT NULL), '|')"
    return Column(joined, f"to_json({joined})")


def clicked_column() -> Column:
    """The clicked items among MIND's impressions, such as N123-1 N234-0, in their order."""
    shown = "string_split(c4, ' ')"
    clicked = f"[regexp_replace(shown, '-1$', '') FOR shown IN {shown} IF suffix(shown, '-1')]"
    return Column(f"array_to_string({clicked}, ' ')", f"to_json({clicked})")


def read_rows(table: Table, readable: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, fields) of delimited text, without the line of names and without blank lines."""
    with open_bytes(readable) as file:
        rows = split_rows(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), table.layout, readable)
        yield from itertools.islice(rows, int(table.layout.header), None)


def split_rows(lines: Iterator[str], layout: Layout, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, fields) of the lines that are not blank.

    Raises:
        InputError: a quotation mark that is not closed; names the line where the row begins.
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
            found = f"quotation marks that do not enclose a whole field ({error})"
            if "unexpected end" in str(error):
                found = "a quotation mark opens a field and nothing closes it"
            raise InputError(
                f"{path}, line {number}: {found}. Close the quotation marks of the field, and double those inside it; "
                "or pass --no_quotes, where quotation marks are ordinary characters."
            ) from error
        if fields is None:
            return
        if fields:
            yield number, fields
