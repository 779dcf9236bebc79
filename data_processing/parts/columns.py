"""Columns of a file: the names under which they are found, and the SQL that reads them."""

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError

LONGEST_NAME, MOST_NAMES = 40, 30  # of columns, in messages

USUAL_NAMES = {  # without case and without signs and blanks
    "user": ("user", "userid", "uid", "reviewerid", "visitorid", "sessionid", "customerid", "memberid", "accountid"),
    "item": (
        *("item", "itemid", "iid", "movieid", "asin", "parentasin", "productid", "articleid", "bookid", "businessid"),
        *("gameid", "appid", "songid", "trackid", "artistid", "newsid", "videoid", "sku"),
    ),
    "time": ("time", "timestamp", "ts", "date", "datetime", "createdat", "eventtime", "unixreviewtime", "tdat"),
}
LESS_USUAL_NAMES = {  # where there is none of these
    "user": ("username", "customer", "reviewer", "visitor", "client", "clientid", "steamid", "session"),
    "item": (
        *("isbn", "stockcode", "productcode", "itemcode", "product", "movie", "article", "book", "game", "song"),
        *("track", "artist", "news", "video"),
    ),
    "time": (
        *(f"{what}{when}" for what in ("invoice", "order", "purchase", "transaction") for when in ("date", "time")),
        *(
            f"{what}{when}"
            for what in ("event", "review", "rating", "click", "visit")
            for when in ("date", "timestamp")
        ),
        *("orderdatetime", "invoicedatetime", "reviewtime", "createtime", "createdtime", "unixtime", "unixtimestamp"),
    ),
}
HISTORIES = ("history", "clickhistory")
LISTS = ("list", "lists", "seq", "sequence", "history")  # what ends the name of a column with lists
PLURALS = ("items", "itemids", "products", "productids", "sequence", "sequences", "list")  # where no column is the item
KNOWN_NAMES = {"id", *HISTORIES}.union(*USUAL_NAMES.values(), *LESS_USUAL_NAMES.values())


class Layout(NamedTuple):
    """How a line of text is cut into columns."""

    delimiter: str
    quotes: bool = False  # whether a field may stand in quotation marks
    names: tuple[str, ...] | None = None  # of the columns
    header: bool = True  # whether the first line has them
    blank: int = 0  # lines in front of that one, which DuckDB would take for it


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
    rewrite: str | None = None  # one of REWRITES, by which its lines get a form that DuckDB reads

    @property
    def rows_name_fields(self) -> bool:
        """Whether each row names its own fields, so that `columns` may lack some."""
        return self.format in ("jsonl", "json", "python")


def literal(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("'", "''") + "'"


WHITE = " \t\r\n\v\f\u00a0\u2003\u3000\ufeff"  # which DuckDB's trim is to be told
CLEANED = f"trim(nfc_normalize({{0}}), {literal(WHITE)})"  # SQL of what `clean` does


def plain_name(name: str) -> str:
    """The name of a RecBole column without its type."""
    return name.split(":")[0]


def clean(name: str) -> str:
    """A name without outer blanks, and in the Unicode form NFC, in which an accent is part of its letter."""
    return unicodedata.normalize("NFC", name).strip()


def folded(name: str) -> str:
    """A name without case, signs and blanks."""
    return re.sub(r"[\W_]", "", clean(name)).lower()


def clean_names(path: Path, names: list[str]) -> list[str]:
    """Names of columns, each by `clean`; tells how many that changed.

    Raises:
        InputError: two columns have one name.
    """
    cleaned = [clean(name) for name in names]
    changed = sum(old != new for old, new in zip(names, cleaned, strict=True))
    if changed:
        print(f"{path}: {changed} names of columns were read without outer blanks, and with accents in one form")
    twice = next((name for name in cleaned if cleaned.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: two columns are called {twice!r}. Rename one of them.")
    return cleaned


def find_column(
    table: Table, role: str, named: str | None, also: tuple[str, ...] = (), optional: bool = False
) -> str | None:
    """The column of the user, the item or the time: as named by the user, or the one with a usual name.

    Args:
        table: whose columns are searched.
        role: "user", "item", "time" or "history".
        named: its name, None to search for a usual one.
        also: further usual names.
        optional: whether None may be the answer.

    Raises:
        InputError: no such column, unless it is optional, or several that may be it; lists the columns.
    """
    there = columns_of(table)
    if named is not None:
        named = clean(named)
        if plain_name(named) not in table.columns and named not in table.columns:
            raise InputError(f"{table.path}: no column {named!r} (--{role}_column). {there}")
        return named if named in table.columns else plain_name(named)
    found = [name for name in table.columns if folded(name) in (*USUAL_NAMES.get(role, ()), *also)]
    found = found or [name for name in table.columns if folded(name) in LESS_USUAL_NAMES.get(role, ())]
    if len(found) > 1:
        raise InputError(
            f"{table.path}: the {role} may be {' or '.join(found)}. Name the column with --{role}_column. {there}"
        )
    if not found and not optional:
        flag = "--item_names" if "id" in also else "--names"
        remedy = f"; if the first line has no names, give them with {flag}" if table.layout else ""
        raise InputError(
            f"{table.path} (read as {table.format}): no column has a usual name for the {role}, such as "
            f"{role}_id. Name it with --{role}_column{remedy}. {there}"
        )
    return found[0] if found else None


def find_history(table: Table, named: str | None, item: str | None) -> str | None:
    """The column with lists of items: as named, or with a usual name such as history, item_id_list or, alone, items.

    Tells of a column with lists that it is not read, where no other is.

    Raises:
        InputError: no such column, or several that may be it.
    """
    usual = (*HISTORIES, *(name + end for name in USUAL_NAMES["item"] for end in LISTS))
    found = find_column(table, "history", named, usual if item else (*usual, *PLURALS), optional=True)
    lists = [name for name in table.columns if re.search("(^|[^a-z])(list|seq|sequence|history)$", name.lower())]
    if found is None and lists:
        print(
            f"warning: {table.path}: {', '.join(lists)}: lists, by the name, that are not read. If they are histories, "
            "name them with --history_column"
        )
    return found


def columns_of(table: Table) -> str:
    """A sentence that names the columns of a table."""
    shown = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…" for name in table.columns]
    more = f" and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else ""
    return f"The columns are {', '.join(shown[:MOST_NAMES])}{more}."
