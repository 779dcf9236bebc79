"""Delimited text: what separates the fields of a line, the names of its columns, and its rows one by one."""

import csv
import io
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from data_processing.parts.columns import KNOWN_NAMES, Column, Layout, Table, clean_names, folded, literal, plain_name
from data_processing.parts.text_files import REWRITES, decode_start, decoded, open_bytes, whole_lines
from utils.errors import InputError

FIELD_LIMIT = 1 << 30  # characters of a CSV field that the search for a bad line accepts
DATA = re.compile(r"\s*([-+]?\d+([.,]\d+)?(e[-+]?\d+)?|\d{4}-\d\d?-\d\d?.*|\d\d?[/.]\d\d?[/.]\d{2,4}.*)\s*", re.I)

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
RATINGS = ("user_id", "item_id", "rating", "timestamp")
NEWS = ("news_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
LAYOUTS = {  # of files that have no names of columns
    ("ml-100k", "interactions"): Layout("\t", names=RATINGS, header=False),
    ("ml-100k", "items"): Layout(
        "|", names=("item_id", "title", "release_date", "video_date", "url", *GENRES), header=False
    ),
    ("ml-1m", "interactions"): Layout("::", names=RATINGS, header=False),
    ("ml-1m", "items"): Layout("::", names=("item_id", "title", "genres"), header=False),
    ("mind", "interactions"): Layout(
        "\t", names=("impression_id", "user_id", "time", "history", "impressions"), header=False
    ),
    ("mind", "items"): Layout("\t", names=NEWS, header=False),
}


def delimited(
    path: Path, role: str, kind: str, encoding: str, quotes: bool, start: bytes, given: list[str] | None
) -> Table:
    """A file of lines cut by a delimiter.

    Args:
        path: the file.
        role: "interactions" or "items".
        kind: its format.
        encoding: of its text.
        quotes: whether fields of CSV and TSV may stand in quotation marks.
        start: its first bytes.
        given: names of its columns, where its first line has none.

    Raises:
        InputError: names that do not fit, or none.
    """
    text = decode_start(path, encoding, start)
    layout = LAYOUTS.get((kind, role))
    rewrite = "blanks" if kind == "blanks" else None
    if layout is None:
        delimiter = max(",;\t|", key=first_of(text).count) if kind == "csv" else "\t"
        layout = Layout(delimiter, quotes and kind not in ("blanks", "recbole"))
        if layout.quotes and backslashed(path, encoding, layout):
            rewrite = "backslashes"
    if rewrite:
        text = "\n".join(map(REWRITES[rewrite], text.split("\n")))
    blank = len(text[: len(text) - len(text.lstrip("\r\n"))].splitlines())
    layout = named(path, role, kind, layout, text, given)._replace(blank=blank)
    names = [plain_name(name) for name in layout.names] if kind == "recbole" else list(layout.names)
    columns = {
        name: Column(f"c{place}", f"to_json(c{place})") for place, name in enumerate(clean_names(path, names)) if name
    }  # a nameless column numbers the rows
    texts = tuple(columns)
    if kind == "recbole":
        texts = tuple(map(plain_name, (name for name in layout.names if not name.endswith((":float", ":float_seq")))))
    elif layout.names == LAYOUTS["ml-100k", "items"].names:
        columns = {name: columns[name] for name in names[:5]} | {"genres": genres_column()}
        texts = ("item_id", "title", "genres")
    elif layout.names == LAYOUTS["mind", "interactions"].names:
        columns["clicked"] = clicked_column()
    elif layout.names == NEWS:
        texts = NEWS[:5]
    return Table(path, kind, encoding, layout, columns, texts, rewrite)


def named(path: Path, role: str, kind: str, layout: Layout, text: str, given: list[str] | None) -> Layout:
    """The layout with the names of the columns: as given, as the format has them, or those of the first line.

    Raises:
        InputError: another number of names than of columns; a first line that has none.
    """
    rows = split_lines(io.StringIO(text, newline=""), layout, path)
    first = next(rows)[1]
    flag = "--names" if role == "interactions" else "--item_names"
    if given is not None:
        if not fits(first, len(given)):
            raise InputError(
                f"{flag} has {len(given)} names, but {path} has {len(first)} columns ({', '.join(first)}). Name each."
            )
        return layout._replace(names=tuple(given), header=False)
    if layout.names is not None:
        return layout
    if kind != "recbole" and looks_like_data(first, rows):
        example = "user item rating time" if role == "interactions" else "item title price"
        raise InputError(
            f"{path}: its first line looks like data, not like names of columns ({', '.join(first)[:200]}). Name each "
            f"of the {len(first)} columns, for example {flag} {example}; or put a line with their names on top."
        )
    return layout._replace(names=tuple(first))


def looks_like_data(first: list[str], rows: Iterator[tuple[int, list[str]]]) -> bool:
    """Whether the fields of a first line are no names: none is a usual one, and some are numbers, dates or repeated."""
    if any(folded(field) in KNOWN_NAMES for field in first):
        return False
    try:
        return any(DATA.fullmatch(field) for field in first) or any(
            field and field == below for _, row in rows for field, below in zip(first, row, strict=False)
        )
    except InputError:  # where what was read of the file breaks off
        return False


def backslashed(path: Path, encoding: str, layout: Layout) -> bool:
    """Whether quotation marks inside fields have backslashes: \\" is there, and the file cannot be read otherwise."""
    last = ""
    for text in decoded(path, encoding):
        if '\\"' in last + text:
            break
        last = text[-1:]
    else:
        return False
    try:
        lines = (line + "\n" for line in whole_lines(path, decoded(path, encoding)))
        rows = split_lines(lines, layout, path)
        width = len(next(rows)[1])
        return not all(fits(fields, width) for _, fields in rows)
    except InputError:
        return True


def fits(fields: list[str], width: int) -> bool:
    """Whether a line has so many columns; a delimiter may end it."""
    return len(fields) == width or (len(fields) == width + 1 and not fields[-1])


def first_of(text: str) -> str:
    """The first line that is not blank."""
    return re.split(r"[\r\n]", text.lstrip())[0]


def genres_column() -> Column:
    """The 19 flags of ml-100k as later MovieLens files write genres: Adventure|Animation."""
    flags = ", ".join(f"CASE WHEN c{place} = '1' THEN {literal(name)} END" for place, name in enumerate(GENRES, 5))
    joined = f"array_to_string(list_filter([{flags}], lambda name: name IS NOT NULL), '|')"
    return Column(joined, f"to_json({joined})")


def clicked_column() -> Column:
    """Of MIND's impressions, such as N123-1 N234-0, the items that were clicked, in their order."""
    shown = "string_split(c4, ' ')"
    clicked = f"[regexp_replace(shown, '-1$', '') FOR shown IN {shown} IF suffix(shown, '-1')]"
    return Column(f"array_to_string({clicked}, ' ')", f"to_json({clicked})")


def records(table: Table, place: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, fields) of delimited text, without the line of names and without blank lines."""
    with open_bytes(place) as file:
        rows = split_lines(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), table.layout, place)
        yield from itertools.islice(rows, int(table.layout.header), None)


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
