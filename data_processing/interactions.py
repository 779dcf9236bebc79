"""Interactions and items in DuckDB: read, checked, numbered, filtered; and the lists split for training and test."""

import argparse
import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_processing.columns import CLEANED, Table, columns_of
from data_processing.data_process_1 import draw_test
from data_processing.formats import field_names, json_column, place_of, read_table
from data_processing.prefixes import history_columns, unfold
from data_processing.row_filter import keep_rows, kept_columns
from data_processing.times import check_times, find_reading, seconds
from utils.data import cumulate
from utils.errors import InputError
from utils.tables import Tables

DEFAULT_SPLIT_TIME = 0.9  # share of the interactions
SHORTEST = 2  # items of a list: a history and a target
IN_ORDER = "OVER (PARTITION BY person, item ORDER BY time {0}, line {0})"
REPEATS = {  # what is left of the items that a user has several times
    "keep": "",
    "first": f"QUALIFY row_number() {IN_ORDER.format('ASC')} = 1",
    "last": f"QUALIFY row_number() {IN_ORDER.format('DESC')} = 1",
    "consecutive": "QUALIFY item IS DISTINCT FROM lag(item) OVER (PARTITION BY person ORDER BY time, line)",
}
BLANK = r"""["\[\]{},\s]*|null|NaN"""  # JSON without anything in it
PEOPLE = "SELECT user_name, row_number() OVER (ORDER BY min(line)) - 1 AS person FROM said GROUP BY user_name"
DESCRIBED = """
    SELECT item_name, first, last, fields, len(list_filter(fields, lambda field: field IS NOT NULL)) > 0 AS has_text
    FROM (SELECT item_name, min(line) AS first, max(line) AS last FROM item_lines GROUP BY item_name)
    JOIN (SELECT line AS last, fields FROM item_lines) USING (last)
"""
THINGS = """
    SELECT item_name, last, fields, coalesce(has_text, false) AS has_text, line IS NOT NULL AS had,
           row_number() OVER (ORDER BY first NULLS LAST, line) - 1 AS item
    FROM described FULL JOIN (SELECT item_name, min(line) AS line FROM said GROUP BY item_name) USING (item_name)
"""
EVENTS = """
    SELECT person, item, time, line FROM (
        SELECT person, item, {time} AS time, line FROM said JOIN people USING (user_name) JOIN things USING (item_name)
    ) {repeats}
"""
TOO_FEW = """
    DELETE FROM events
    WHERE person IN (SELECT person FROM events GROUP BY person HAVING count(*) < ?)
       OR item IN (SELECT item FROM events GROUP BY item HAVING count(*) < ?)
"""
USERS = """
    SELECT user_name AS name, person, row_number() OVER (ORDER BY person) - 1 AS id FROM people
    WHERE person IN (SELECT person FROM events)
"""
ITEMS = """
    SELECT item_name AS name, item, last, fields, has_text, row_number() OVER (ORDER BY item) - 1 AS id FROM things
    WHERE item IN (SELECT item FROM events) OR ({everything} AND last IS NOT NULL AND (has_text OR {given}))
"""
HISTORIES = """
    SELECT users.id::INTEGER AS user_id, items.id::INTEGER AS item, time
    FROM events JOIN users USING (person) JOIN items USING (item) ORDER BY person, time, line
"""


class Source(NamedTuple):
    """A file with the columns that are taken from it."""

    table: Table
    user: str | None
    item: str | None  # None of histories without an item after them
    time: str | None
    texts: list[str] | None  # None: all fields of rows that name them, which only a look at all of them tells
    history: str | None = None  # lists of the items before
    time_formats: list[str] | None = None  # of strptime
    keep: dict[str, tuple[str, ...]] | None = None  # conditions on its rows -> the columns they name


class Histories(NamedTuple):
    """What the users did, in time order, one user after another."""

    items: np.ndarray  # (interactions,) int32
    times: np.ndarray | None  # (interactions,) float64 seconds, where they are known
    offsets: np.ndarray  # (U + 1,) int64

    @property
    def lengths(self) -> np.ndarray:
        """(U,) int64 items of each user."""
        return np.diff(self.offsets)


def read_files(tables: Tables, interactions: Source, items: Source, output: Path) -> Source:
    """Both files into `said` and `item_lines`; returns `items` with all its text columns.

    Raises:
        InputError: a damaged file, or a row without user, item or time; names the line.
    """
    read_interactions(tables, interactions, output)
    return read_items(tables, items, output)


def read_interactions(tables: Tables, interactions: Source, output: Path) -> None:
    """The interactions into the view `said`.

    Raises:
        InputError: see `read_files`.
    """
    tables.connection.execute("SET GLOBAL TimeZone = 'UTC'")  # of dates that name none, whatever the machine's is
    table, line = interactions.table, "row_number() OVER () AS line"
    print(f"reading {table.path} ({table.format}, {table.encoding})")
    columns = {"user_name": interactions.user, "item_name": interactions.item, "time": interactions.time}
    columns |= {f"kept_{place}": name for place, name in enumerate(kept_columns(interactions.keep or {}))}
    taken = {name: table.columns[column].text if column else "NULL::VARCHAR" for name, column in columns.items()}
    if interactions.history is not None:
        taken |= history_columns(table, interactions.history, interactions.item)
    select = ", ".join([line, *(f"{sql} AS {name}" for name, sql in taken.items())])
    read_table(tables, "interaction_rows", select, table, output)
    if interactions.keep:
        keep_rows(tables, "interaction_rows", interactions.keep, table)
    clean_values(tables, "interaction_rows", ("user_name",), "users", table)
    lists = ("item_name",) if interactions.history is None else ("history", "target")
    clean_values(tables, "interaction_rows", lists, "items", table)
    tables.connection.execute("CREATE OR REPLACE VIEW said AS SELECT * FROM interaction_rows")
    refuse(tables, "said", "user_name", f"the user ({interactions.user}) is empty", table, output)
    item = interactions.item or interactions.history
    refuse(tables, "said", "item_name", f"the item ({item}) is empty", table, output)
    check_rows(tables, "said", table)
    if interactions.time is not None:
        check_times(tables, table, interactions.time, interactions.time_formats, output)
    if interactions.history is not None:
        order = "NULL" if interactions.time is None else find_reading(tables, interactions.time_formats).seconds
        unfold(tables, table, interactions.history, interactions.item, order, output)
    refuse_header(tables, interactions, "--names")


def read_items(tables: Tables, items: Source, output: Path) -> Source:
    """The items into the table `item_lines`; returns `items` with all its text columns.

    Raises:
        InputError: see `read_files`.
    """
    table, line = items.table, "row_number() OVER () AS line"
    print(f"reading {table.path} ({table.format}, {table.encoding})")
    named = items.texts if table.rows_name_fields else None  # which its first rows need not have
    if items.texts is None:
        items = items._replace(texts=[name for name in field_names(tables, table, output) if name != items.item])
    fields = [(table.columns.get(name) or json_column(name)).json for name in items.texts]
    cleaned = [f"CASE WHEN NOT regexp_full_match({sql}::VARCHAR, '{BLANK}') THEN {sql}::VARCHAR END" for sql in fields]
    select = f"{line}, {table.columns[items.item].text} AS item_name, [{', '.join(cleaned)}]::VARCHAR[] AS fields"
    read_table(tables, "item_lines", select, table, output)
    clean_values(tables, "item_lines", ("item_name",), "items", table)
    refuse(tables, "item_lines", "item_name", f"the item ({items.item}) is empty", table, output)
    check_rows(tables, "item_lines", table)
    refuse_header(tables, items, "--item_names")
    for place, name in enumerate(named or (), start=1):
        if not tables.value(f"SELECT count(fields[{place}]) FROM item_lines"):
            raise InputError(f"{table.path}: no line has text in {name!r} (--text_columns). {columns_of(table)}")
    return items


def clean_values(tables: Tables, rows: str, columns: tuple[str, ...], what: str, table: Table) -> None:
    """`clean` for the names in columns of text or of lists; tells in how many rows that changed something."""
    cleaned = {
        column: f"list_transform({column}, lambda name: {CLEANED.format('name')})"
        if column in ("history", "target")
        else CLEANED.format(column)
        for column in columns
    }
    other = " OR ".join(f"{column} <> {sql}" for column, sql in cleaned.items())
    changed = tables.make(f"cleaned_{rows}_{what}", f"SELECT line FROM {rows} WHERE {other}")
    if changed:
        values = ", ".join(f"{column} = {sql}" for column, sql in cleaned.items())
        tables.connection.execute(f"UPDATE {rows} SET {values} WHERE {other}")
        how = "were read without outer blanks, and with accents in one form"
        print(f"{table.path}: names of {what} in {changed} rows {how}")


def refuse_header(tables: Tables, source: Source, flag: str) -> None:
    """InputError if the first line, taken for names of columns, has an item."""
    table = source.table
    if not (table.layout and table.layout.header and source.item):
        return
    if tables.value("SELECT count(*) FROM said WHERE item_name = ?", source.item):
        raise InputError(
            f"{table.path}: {source.item!r} is both the name of a column and an item. If the first line has no names, "
            f"give them with {flag}; if the line of names is there again, remove it."
        )


def check_rows(tables: Tables, name: str, table: Table) -> None:
    """InputError unless a file has rows."""
    if not tables.value(f"SELECT count(*) FROM {name}"):
        raise InputError(f"{table.path} has no row, only the names of columns.")


def refuse(tables: Tables, name: str, column: str, found: str, table: Table, output: Path) -> None:
    """InputError naming the first line in which a column is empty."""
    row = tables.value(f"SELECT min(line) FROM {name} WHERE coalesce(trim({column}), '') = ''")
    if row is not None:
        raise InputError(f"{place_of(table, row, output)}: {found}. Fill it in, or remove the line.")


def gather(tables: Tables, args: argparse.Namespace, interactions: Source) -> Histories:
    """Who had which items, in time order, after repeats and filters; makes the tables `users` and `items`.

    Raises:
        InputError: nothing is left, or no interaction is with an item of the items file.
    """
    tables.make("people", PEOPLE)
    tables.make("described", DESCRIBED)
    tables.make("things", THINGS)
    if not tables.value("SELECT count(*) FROM things WHERE had AND last IS NOT NULL"):
        here, there = (tables.value(f"SELECT item_name FROM {name} WHERE line = 1") for name in ("said", "item_lines"))
        raise InputError(
            f"{args.items} has none of the items in {args.interactions} ({there!r} there, {here!r} here, for example). "
            "Name the columns that have the same names of items with --item_column."
        )
    time = "NULL::DOUBLE" if interactions.time is None else seconds(tables, interactions.time_formats)
    tables.make("events", EVENTS.format(time=time, repeats=REPEATS[args.repeats]))
    least = (args.min_user_interactions, args.min_item_interactions)
    while tables.value(TOO_FEW, *least):
        pass
    if not tables.value("SELECT count(*) FROM events"):
        raise InputError(
            f"{args.interactions}: no interaction is left after --min_user_interactions {least[0]} and "
            f"--min_item_interactions {least[1]}. Lower them, or give more data."
        )
    users = tables.make("users", USERS)
    given = args.embeddings is not None
    tables.make("items", ITEMS.format(everything=least[1] == 0, given=given))
    columns = tables.columns(HISTORIES)
    return Histories(
        columns["item"],
        None if interactions.time is None else columns["time"],
        cumulate(np.bincount(columns["user_id"], minlength=users)),
    )


def split(histories: Histories, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """How many items of each user's list train.pkl and test.pkl have, 0 or two and more: (U,) int64 each.

    Raises:
        InputError: nobody is left to test, or, where --test_share is 0, to train on.
    """
    train, test = (np.where(lengths < SHORTEST, 0, lengths) for lengths in SPLITS[args.split](histories, args))
    if not test.any() and (args.split != "users" or not train.any()):
        remedy = "Give users with longer histories"
        if args.split == "time":
            remedy += ", or choose another --split_time"
        raise InputError(
            f"{args.interactions}: none of {len(test)} users has a history and a target with --split {args.split}. "
            f"{remedy}."
        )
    return train, test


def leave_last_out(histories: Histories, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """How many items, from the first on, of each user's go to train.pkl and to test.pkl: (U,) int64 each."""
    return histories.lengths - 1, histories.lengths


def split_at_time(histories: Histories, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The same: what was before a time; and that and one more item, of users with items on both sides.

    Raises:
        InputError: there are no such users.
    """
    cut = DEFAULT_SPLIT_TIME if args.split_time is None else args.split_time
    if 0 < cut < 1:
        place = int(cut * len(histories.times))
        cut = float(np.partition(histories.times, place)[place])
    users = np.repeat(np.arange(len(histories.lengths)), histories.lengths)
    before = np.bincount(users[histories.times < cut], minlength=len(histories.lengths))
    both = (before > 0) & (before < histories.lengths)
    first, at, last = map(date, (histories.times.min(), cut, histories.times.max()))
    print(f"split at {at} (the interactions are from {first} to {last})")
    return before, np.where(both, before + 1, 0)


def date(time: float) -> str:
    """Unix seconds for people to read."""
    try:
        return f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{time:g}"


def split_users(histories: Histories, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The same: whole lists, of users drawn at random among those with two items or more."""
    lengths = histories.lengths
    in_test = np.zeros(len(lengths), dtype=bool)
    eligible = np.flatnonzero(lengths >= SHORTEST)
    in_test[eligible[draw_test(len(eligible), args.test_share, args.seed)]] = True
    return np.where(in_test, 0, lengths), np.where(in_test, lengths, 0)


SPLITS = {"leave_last_out": leave_last_out, "time": split_at_time, "users": split_users}
