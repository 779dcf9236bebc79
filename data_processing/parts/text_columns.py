"""Which columns of the items describe an item: those that are not addresses, images, ids, numbers, dates or flags."""

import json
import math
import re
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from data_processing.parts.columns import Table, folded
from data_processing.parts.missing import MARKED, NOTHING, has_text
from data_processing.parts.tables import Tables

# Columns of these names always describe an item.
TITLES = ("title", "name", "itemname", "itemtitle", "productname", "producttitle", "movietitle", "booktitle")
SAMPLED_ROWS, SAMPLED_TOKENS = 2000, 10_000  # of a column, by which it is judged
NEARLY_ALL = 0.9  # of the values of a column must be uninformative for the column to be

_KEY = re.compile(r"""(["'])[^"']*\1\s*:""")  # of an object that is written in a text, as in CSV
_TOKEN = re.compile(r"[^\s,;|'\"\[\]{}]+")
_ADDRESS = re.compile(r"(?i:https?:|www\.|//)\S+|\S+\.(?i:avif|bmp|gif|jpe?g|png|svg|tiff?|webp)(?:\?\S*)?")
_NUMBER = re.compile(r"(?:[\W\d_]|(?<=\d)[TZ])+|(?i:true|false|yes|no|[tfyn])")  # or date, or flag


class ColumnStatistics(NamedTuple):
    """What a sample of the values of a column shows."""

    length: float  # characters of the median value
    tokens: list[str]  # words, numbers and addresses of all values
    uninformative: bool  # nearly all values are addresses, images, numbers, dates or flags


def choose_text_columns(tables: Tables, table: Table, names: list[str]) -> list[str]:
    """Choose the columns that describe an item, and print which were chosen and which were not.

    Their values are the lists `fields` of the table `item_rows`, as JSON. Columns with short values come first, as the
    encoder cuts a long text at its end.
    """
    step = tables.count("item_rows") // SAMPLED_ROWS + 1
    rows = [fields for (fields,) in tables.rows("SELECT fields FROM item_rows WHERE line % ? = 0", step)]
    columns = dict(zip(names, map(column_statistics, zip(*rows, strict=True)), strict=True))
    others = {name: column for name, column in columns.items() if folded(name) not in TITLES or not column.tokens}
    dropped = [
        name
        for name, column in others.items()
        if column.uninformative or names_items(tables, column.tokens[:SAMPLED_TOKENS])
    ]
    chosen = sorted((name for name in names if name not in dropped), key=lambda name: columns[name].length)
    print(f"{table.path}: text {', '.join(chosen) or 'none'}")
    if dropped:
        print(f"  left out (addresses, images, ids, numbers, flags): {', '.join(dropped)}; --text_columns names others")
    return chosen


def column_statistics(values: Iterable[str | None]) -> ColumnStatistics:
    """Compute the statistics of a column from some of its values, as JSON."""
    parsed = [(len(value), tokens_of(json.loads(value))) for value in values if value is not None]
    parsed = [(length, tokens) for length, tokens in parsed if tokens]
    length = statistics.median(length for length, _ in parsed) if parsed else math.inf
    uninformative = sum(is_uninformative(tokens) for _, tokens in parsed)
    tokens = [token for _, tokens in parsed for token in tokens]
    return ColumnStatistics(length, tokens, bool(parsed) and uninformative >= NEARLY_ALL * len(parsed))


def tokens_of(value: Any) -> list[str]:
    """Split a value at blanks and separators; of an object without its keys."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [token for part in value for token in tokens_of(part)]
    return _TOKEN.findall(_KEY.sub(" ", str(value))) if has_text(value) else []


def is_uninformative(tokens: list[str]) -> bool:
    """Whether a value has only numbers, dates and flags, or consists of addresses by most of its characters."""
    addresses = sum(len(token) for token in tokens if _ADDRESS.fullmatch(token))
    return all(map(_NUMBER.fullmatch, tokens)) or 2 * addresses > sum(map(len, tokens))


def names_items(tables: Tables, tokens: list[str]) -> bool:
    """Whether most tokens of a column are names of items, as in a column of related products."""
    words = [token for token in tokens if not token.isdecimal()]
    known = "SELECT count(*) FROM (SELECT unnest(?::VARCHAR[]) AS item_name) SEMI JOIN item_lines USING (item_name)"
    return bool(words) and 2 * tables.value(known, words) > len(tokens)


def print_missing_texts(tables: Tables, table: Table, numbers: list[int]) -> None:
    """Print how many fields, of those with these numbers from 1, are a word such as None, which counts as missing.

    Somebody may have meant the word as a text.
    """
    fields = f"SELECT unnest(list_select(fields, {numbers}::INTEGER[])) AS field FROM item_lines"
    marked = f"regexp_matches(field, '{MARKED}') AND regexp_full_match(field, '{NOTHING}')"
    what = "count(*), list_sort(list(DISTINCT field))[:3]"
    count, found = next(tables.rows(f"SELECT {what} FROM ({fields}) WHERE {marked}"))
    if count:
        print(f"{table.path}: {count} text fields that are {', '.join(found)} count as empty")
