"""Files and their columns: how a file is read, the SQL of its columns, and their usual names."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError

LONGEST_NAME, MOST_NAMES = 40, 30  # of columns, in a message

USUAL_NAMES = {  # in the form of `folded`
    "user": ("user", "userid", "uid", "reviewerid", "visitorid", "sessionid", "customerid", "memberid", "accountid"),
    "item": (
        *("item", "itemid", "iid", "movieid", "asin", "parentasin", "productid", "articleid", "bookid", "businessid"),
        *("gameid", "appid", "songid", "trackid", "artistid", "newsid", "videoid", "sku"),
    ),
    "time": ("time", "timestamp", "ts", "date", "datetime", "createdat", "eventtime", "unixreviewtime", "tdat"),
}
LESS_USUAL_NAMES = {  # searched for where a file has none of the usual names
    "user": ("username", "customer", "reviewer", "visitor", "client", "clientid", "steamid", "session"),
    "item": (
        *("isbn", "stockcode", "productcode", "itemcode", "product", "movie", "article", "book", "game", "song"),
        *("track", "artist", "news", "video"),
    ),
    "time": (
        *(what + when for what in ("invoice", "order", "purchase", "transaction") for when in ("date", "time")),
        *(what + when for what in ("event", "review", "rating", "click", "visit") for when in ("date", "timestamp")),
        *("orderdatetime", "invoicedatetime", "reviewtime", "createtime", "createdtime", "unixtime", "unixtimestamp"),
    ),
}
HISTORY_NAMES = ("history", "clickhistory")
LISTS = ("list", "lists", "seq", "sequence", "history")  # endings of the names of columns with lists
PLURALS = ("items", "itemids", "products", "productids", "sequence", "sequences", "list")  # if there is no item column
KNOWN_NAMES = {"id", *HISTORY_NAMES}.union(*USUAL_NAMES.values(), *LESS_USUAL_NAMES.values())


@dataclass(frozen=True)
class ReadSettings:
    """How the user wants a file to be read; None where it is to be found out."""

    role: str  # "interactions" or "items"
    format: str | None  # one of FORMATS
    encoding: str | None  # of text
    quotes: bool  # whether fields of CSV and TSV may stand in quotation marks
    names: list[str] | None  # of the columns, where the first line has none

    @property
    def names_flag(self) -> str:
        """The flag that gives the names."""
        return "--names" if self.role == "interactions" else "--item_names"


class Layout(NamedTuple):
    """How a line of text is cut into columns."""

    delimiter: str
    quotes: bool = False  # whether a field may stand in quotation marks
    names: tuple[str, ...] | None = None  # of the columns
    header: bool = True  # whether the first line has the names
    blank: int = 0  # blank lines in front of the first one, which DuckDB is to skip


class Column(NamedTuple):
    """The SQL that reads a column."""

    text: str  # as VARCHAR
    json: str  # as JSON, so that lists and objects keep their form


class Table(NamedTuple):
    """A file and how it is read."""

    path: Path
    format: str
    encoding: str
    layout: Layout | None  # of delimited text
    columns: dict[str, Column]
    texts: tuple[str, ...]  # names of the columns that may describe an item
    rewrite: str | None = None  # one of text_files.REWRITES, by which lines get a form that DuckDB reads

    @property
    def rows_name_fields(self) -> bool:
        """Whether each row names its fields, so that `columns` may lack some."""
        return self.format in ("jsonl", "json", "python")


def literal(text: str) -> str:
    """A text as a literal in SQL."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """The name of a column in SQL."""
    return '"' + name.replace('"', '""') + '"'


WHITE = " \t\r\n\v\f\u00a0\u2003\u3000\ufeff"  # what `clean` removes; DuckDB's trim needs the list
CLEANED = f"trim(nfc_normalize({{0}}), {literal(WHITE)})"  # SQL of `clean`


def plain_name(name: str) -> str:
    """The name of a RecBole column without its type."""
    return name.split(":")[0]


def clean(name: str) -> str:
    """A name without outer blanks and in the Unicode form NFC, in which an accent is part of its letter."""
    return unicodedata.normalize("NFC", name).strip()


def folded(name: str) -> str:
    """A name in lower case, without signs and blanks, as it is compared with the usual names."""
    return re.sub(r"[\W_]", "", clean(name)).lower()


def clean_names(path: Path, names: list[str]) -> list[str]:
    """Apply `clean` to names of columns, and print how many that changed; raise InputError if two become equal."""
    cleaned = [clean(name) for name in names]
    changed = sum(old != new for old, new in zip(names, cleaned, strict=True))
    if changed:
        print(f"{path}: {changed} names of columns were read without outer blanks, and with accents in one form")
    for name in cleaned:
        if cleaned.count(name) > 1:
            raise InputError(f"{path}: two columns are called {name!r}. Rename one of them.")
    return cleaned


def find_column(
    table: Table, role: str, named: str | None, also: tuple[str, ...] = (), optional: bool = False
) -> str | None:
    """Find the column of a role: "user", "item", "time" or "history".

    It is the column `named` or, for None, one with a usual name, among which are those of `also`. Where no column is
    found, the answer is None if it is `optional`.

    Raises:
        InputError: no such column, unless it is optional, or several columns with a usual name; lists all columns.
    """
    available = columns_of(table)
    if named is not None:
        named = clean(named)
        if plain_name(named) not in table.columns and named not in table.columns:
            raise InputError(f"{table.path}: no column {named!r} (--{role}_column). {available}")
        return named if named in table.columns else plain_name(named)
    found = [name for name in table.columns if folded(name) in (*USUAL_NAMES.get(role, ()), *also)]
    found = found or [name for name in table.columns if folded(name) in LESS_USUAL_NAMES.get(role, ())]
    if len(found) > 1:
        raise InputError(
            f"{table.path}: the {role} may be {' or '.join(found)}. Name the column with --{role}_column. {available}"
        )
    if not found and not optional:
        flag = "--item_names" if "id" in also else "--names"
        remedy = f"; if the first line has no names, give them with {flag}" if table.layout else ""
        raise InputError(
            f"{table.path} (read as {table.format}): no column has a usual name for the {role}, such as "
            f"{role}_id. Name it with --{role}_column{remedy}. {available}"
        )
    return found[0] if found else None


def find_history(table: Table, named: str | None, item: str | None) -> str | None:
    """Find the column with lists of items: as named, or with a usual name such as history or item_id_list.

    The name may also be a plural such as items, if there is no column of the item. Prints a warning where other
    columns have lists, by their names, and none is read.

    Raises:
        InputError: no such column, or several columns with a usual name.
    """
    usual = (*HISTORY_NAMES, *(name + end for name in USUAL_NAMES["item"] for end in LISTS))
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
