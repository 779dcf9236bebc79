"""Interactions and items from files into DuckDB: read, cleaned, numbered and filtered.

Tables and views, in the order in which they are made:

    interaction_rows, interactions   rows of the interactions file; those with a user, an item and a time
    item_rows, item_lines            rows of the items file; those with an item
    item_texts                       each item with the numbers of its first and last line, and the texts of the last
    all_users, all_items             users and items, numbered by first appearance
    events                           the interactions that are left after repeats and filters
    users, items                     the users and items that are left, with their final ids
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_processing.parts.columns import CLEANED, Table, columns_of
from data_processing.parts.formats import field_names, json_column, locate_rows, read_table
from data_processing.parts.history_column import drop_missing_items, history_columns, unfold_histories
from data_processing.parts.missing import NOTHING, missing_in
from data_processing.parts.row_filter import KEEP, keep_rows, kept_columns
from data_processing.parts.splits import Histories, load_rows
from data_processing.parts.tables import Tables
from data_processing.parts.text_columns import choose_text_columns, print_missing_texts
from data_processing.parts.times import check_times, seconds
from utils.errors import InputError

IN_ORDER = "OVER (PARTITION BY user_number, item_number ORDER BY time {0}, line {0})"
IN_USER = "OVER (PARTITION BY user_number ORDER BY time, line)"
REPEATS = {  # what is left of the items that a user has several times
    "keep": "",
    "first": f"QUALIFY row_number() {IN_ORDER.format('ASC')} = 1",
    "last": f"QUALIFY row_number() {IN_ORDER.format('DESC')} = 1",
    "consecutive": f"QUALIFY item_number IS DISTINCT FROM lag(item_number) {IN_USER}",
}
ITEM_TEXTS = """
    SELECT item_name, first, last, fields, len(list_filter(fields, lambda field: field IS NOT NULL)) > 0 AS has_text
    FROM (SELECT item_name, min(line) AS first, max(line) AS last FROM item_lines GROUP BY item_name)
    JOIN (
        SELECT line AS last, list_transform(
            {numbers}::INTEGER[],
            lambda number: CASE WHEN NOT regexp_full_match(fields[number], '{nothing}') THEN fields[number] END
        ) AS fields FROM item_lines
    ) USING (last)
"""
ALL_USERS = """
    SELECT user_name, row_number() OVER (ORDER BY min(line)) - 1 AS user_number FROM interactions GROUP BY user_name
"""
ALL_ITEMS = """
    SELECT item_name, last, fields, coalesce(has_text, false) AS has_text, line IS NOT NULL AS has_interactions,
           row_number() OVER (ORDER BY first NULLS LAST, line) - 1 AS item_number
    FROM item_texts
    FULL JOIN (SELECT item_name, min(line) AS line FROM interactions GROUP BY item_name) USING (item_name)
"""
EVENTS = """
    SELECT user_number, item_number, time, line FROM (
        SELECT user_number, item_number, {time} AS time, line
        FROM interactions JOIN all_users USING (user_name) JOIN all_items USING (item_name)
    ) {repeats}
"""
DELETE_RARE = """
    DELETE FROM events
    WHERE user_number IN (SELECT user_number FROM events GROUP BY user_number HAVING count(*) < ?)
       OR item_number IN (SELECT item_number FROM events GROUP BY item_number HAVING count(*) < ?)
"""
USERS = """
    SELECT user_name AS name, user_number, row_number() OVER (ORDER BY user_number) - 1 AS id FROM all_users
    WHERE user_number IN (SELECT user_number FROM events)
"""
ITEMS = """
    SELECT item_name AS name, item_number, last, fields, has_text, row_number() OVER (ORDER BY item_number) - 1 AS id
    FROM all_items
    WHERE item_number IN (SELECT item_number FROM events)
       OR ({unused} AND last IS NOT NULL AND (has_text OR {textless}))
"""
HISTORY_ROWS = """
    SELECT users.id::INTEGER AS user_id, items.id::INTEGER AS item, time
    FROM events JOIN users USING (user_number) JOIN items USING (item_number) ORDER BY user_number, time, line
"""


class Source(NamedTuple):
    """A file of interactions or items, with the columns that are read from it."""

    table: Table
    user: str | None
    item: str | None  # None: rows have a history, and no item that comes after it
    time: str | None
    texts: list[str] | None  # columns that describe an item; None: chosen by their values
    history: str | None = None  # column with lists of the items before
    time_formats: list[str] | None = None  # of strptime
    keep: dict[str, tuple[str, ...]] | None = None  # conditions on the rows -> the columns that they name


@dataclass(frozen=True)
class Filters:
    """Which interactions and items count."""

    repeats: str  # one of REPEATS
    min_user_interactions: int
    min_item_interactions: int  # 0 also keeps items without any
    keep_textless: bool  # whether, of these, items without text are kept: their embeddings are given


def read_interactions(tables: Tables, source: Source, output: Path) -> None:
    """Read the interactions file into the view `interactions`.

    Raises:
        InputError: a damaged file, no complete row, or a time that cannot be read; names the line.
    """
    tables.connection.execute("SET GLOBAL TimeZone = 'UTC'")  # of dates that name none, on every machine
    table, rows = source.table, "interaction_rows"
    print(f"reading {table.path} ({table.format}, {table.encoding})")
    columns = {"user_name": source.user, "item_name": source.item, "time": source.time}
    columns |= {f"kept_{number}": name for number, name in enumerate(kept_columns(source.keep or {}))}
    selected = {name: table.columns[column].text if column else "NULL::VARCHAR" for name, column in columns.items()}
    if source.history is not None:
        selected |= history_columns(table, source.history, source.item)
    select = ", ".join(["row_number() OVER () AS line", *(f"{sql} AS {name}" for name, sql in selected.items())])
    read_table(tables, rows, select, table, output)
    if source.keep:
        left_out = keep_rows(tables, rows, source.keep, table)
        print(f"{table.path}: {left_out} of {left_out + tables.count(rows)} rows left out by {KEEP}")
    clean_values(tables, rows, ("user_name",), "users", table)
    clean_values(tables, rows, ("item_name",) if source.history is None else ("history", "target"), "items", table)
    if source.history is not None:
        drop_missing_items(tables, rows, table)
    needed = {"user_name": source.user, "item_name": source.item or source.history}
    needed |= {"time": source.time} if source.time else {}
    drop_incomplete(tables, rows, "interactions", needed, table, output)
    order = "NULL"
    if source.time is not None:
        order = check_times(tables, table, source.time, source.time_formats, output).seconds
    if source.history is not None:
        unfold_histories(tables, table, source.history, source.item, order, output)
    refuse_header(tables, source, "--names")


def read_items(tables: Tables, source: Source, output: Path) -> Source:
    """Read the items file into `item_lines` and `item_texts`; returns `source` with the columns that describe an item.

    Raises:
        InputError: a damaged file, no complete row, or no text column; names the line.
    """
    table = source.table
    print(f"reading {table.path} ({table.format}, {table.encoding})")
    names = source.texts
    if names is None:
        found = field_names(tables, table, output) if table.rows_name_fields else table.texts
        names = [name for name in found if name != source.item]
    fields = [f"{(table.columns.get(name) or json_column(name)).json}::VARCHAR" for name in names]
    select = f"row_number() OVER () AS line, {table.columns[source.item].text} AS item_name, "
    read_table(tables, "item_rows", f"{select}[{', '.join(fields)}]::VARCHAR[] AS fields", table, output)
    clean_values(tables, "item_rows", ("item_name",), "items", table)
    drop_incomplete(tables, "item_rows", "item_lines", {"item_name": source.item}, table, output)
    refuse_header(tables, source, "--item_names")
    chosen = source.texts or choose_text_columns(tables, table, names)
    numbers = [names.index(name) + 1 for name in chosen]
    tables.make("item_texts", ITEM_TEXTS.format(numbers=numbers, nothing=NOTHING))
    print_missing_texts(tables, table, numbers)
    if table.rows_name_fields:  # no header has shown whether these columns exist
        for number, name in enumerate(source.texts or (), start=1):
            if not tables.value(f"SELECT count(fields[{number}]) FROM item_texts"):
                raise InputError(f"{table.path}: no line has text in {name!r} (--text_columns). {columns_of(table)}")
    return source._replace(texts=chosen)


def clean_values(tables: Tables, rows: str, columns: tuple[str, ...], what: str, table: Table) -> None:
    """Apply `clean` to the names in columns of text or of lists, and print in how many rows that changed something."""
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
    """Raise InputError if the first line, taken for names of columns, has an item."""
    table = source.table
    if not (table.layout and table.layout.header and source.item):
        return
    if tables.value("SELECT count(*) FROM interactions WHERE item_name = ?", source.item):
        raise InputError(
            f"{table.path}: {source.item!r} is both the name of a column and an item. If the first line has no names, "
            f"give them with {flag}; if the line of names is there again, remove it."
        )


def drop_incomplete(tables: Tables, rows: str, name: str, needed: dict[str, str], table: Table, output: Path) -> None:
    """Make the view `name` of the rows with a value in every column needed, and print what the other rows lack.

    `needed` is column -> its name in the file.

    Raises:
        InputError: the file has no row, or none that is complete.
    """
    count = tables.count(rows)
    if not count:
        raise InputError(f"{table.path} has no row, only the names of columns.")
    lacks = {column: missing_in(column) for column in needed}
    tables.connection.execute(
        f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM {rows} WHERE NOT ({' OR '.join(lacks.values())})"
    )
    for column, lack in lacks.items():
        what = f"count(*), min(line), list_sort(list(DISTINCT coalesce({column}, '')))[:3]"
        lacking, first, found = next(tables.rows(f"SELECT {what} FROM {rows} WHERE {lack}"))
        if lacking:
            print(
                f"{locate_rows(table, [first], 1, output)}: no {column.split('_')[0]} ({needed[column]}: "
                f"{str(found)[1:-1]}); {lacking} of {count} rows like this are left out"
            )
    if not tables.count(name):
        raise InputError(
            f"{table.path}: no row has a value in {' and '.join(needed.values())}. Name other columns with "
            f"{', '.join('--' + column.split('_')[0] + '_column' for column in needed)}."
        )


def gather_histories(tables: Tables, interactions: Source, items: Source, filters: Filters) -> Histories:
    """Apply repeats and filters, and collect the items of each user in time order; makes `users` and `items`.

    Raises:
        InputError: nothing is left, or no interaction is with an item of the items file.
    """
    path, least = interactions.table.path, (filters.min_user_interactions, filters.min_item_interactions)
    tables.make("all_users", ALL_USERS)
    tables.make("all_items", ALL_ITEMS)
    if not tables.count("all_items WHERE has_interactions AND last IS NOT NULL"):
        here, there = (
            tables.value(f"SELECT arg_min(item_name, line) FROM {name}") for name in ("interactions", "item_lines")
        )
        raise InputError(
            f"{items.table.path} has none of the items in {path} ({there!r} there, {here!r} here, for example). "
            "Name the columns that have the same names of items with --item_column."
        )
    time = "NULL::DOUBLE" if interactions.time is None else seconds(tables, interactions.time_formats)
    tables.make("events", EVENTS.format(time=time, repeats=REPEATS[filters.repeats]))
    while tables.value(DELETE_RARE, *least):
        pass
    if not tables.count("events"):
        raise InputError(
            f"{path}: no interaction is left after --min_user_interactions {least[0]} and "
            f"--min_item_interactions {least[1]}. Lower them, or give more data."
        )
    users = tables.make("users", USERS)
    tables.make("items", ITEMS.format(unused=least[1] == 0, textless=filters.keep_textless))
    histories = load_rows(tables, HISTORY_ROWS, users)
    return histories if interactions.time else histories._replace(times=None)
