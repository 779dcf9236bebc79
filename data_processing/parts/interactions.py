"""Interactions and items in DuckDB: read, checked, numbered, filtered; and the lists split for training and test."""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_processing.parts.columns import CLEANED, Table, columns_of, folded
from data_processing.parts.formats import field_names, json_column, place_of, read_table
from data_processing.parts.prefixes import history_columns, leave_out_missing, unfold
from data_processing.parts.row_filter import keep_rows, kept_columns
from data_processing.parts.splits import Histories
from data_processing.parts.tables import Tables
from data_processing.parts.texts import MARKED, NOTHING, look_at, missing_in
from data_processing.parts.times import check_times, seconds
from utils.data import cumulate
from utils.errors import InputError

IN_ORDER = "OVER (PARTITION BY person, item ORDER BY time {0}, line {0})"
REPEATS = {  # what is left of the items that a user has several times
    "keep": "",
    "first": f"QUALIFY row_number() {IN_ORDER.format('ASC')} = 1",
    "last": f"QUALIFY row_number() {IN_ORDER.format('DESC')} = 1",
    "consecutive": "QUALIFY item IS DISTINCT FROM lag(item) OVER (PARTITION BY person ORDER BY time, line)",
}
TITLES = (
    "title",
    "name",
    "itemname",
    "itemtitle",
    "productname",
    "producttitle",
    "movietitle",
    "booktitle",
)  # are text
LOOKED_AT, PIECES = 2000, 10_000  # rows, and words of a column, that tell whether it describes an item
PEOPLE = "SELECT user_name, row_number() OVER (ORDER BY min(line)) - 1 AS person FROM said GROUP BY user_name"
DESCRIBED = """
    SELECT item_name, first, last, fields, len(list_filter(fields, lambda field: field IS NOT NULL)) > 0 AS has_text
    FROM (SELECT item_name, min(line) AS first, max(line) AS last FROM item_lines GROUP BY item_name)
    JOIN (
        SELECT line AS last, list_transform(
            {places}::INTEGER[],
            lambda place: CASE WHEN NOT regexp_full_match(fields[place], '{nothing}') THEN fields[place] END
        ) AS fields FROM item_lines
    ) USING (last)
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
    texts: list[str] | None  # None: those that a look at their values tells
    history: str | None = None  # lists of the items before
    time_formats: list[str] | None = None  # of strptime
    keep: dict[str, tuple[str, ...]] | None = None  # conditions on its rows -> the columns they name


def read_files(tables: Tables, interactions: Source, items: Source, output: Path) -> Source:
    """Both files into `said` and `item_lines`, and the items' texts into `described`; returns `items` with its texts.

    Raises:
        InputError: a damaged file, no row that is whole, or a time that is none; names the line. No text column.
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
    if interactions.history is not None:
        leave_out_missing(tables, "interaction_rows", table)
    needed = {"user_name": interactions.user, "item_name": interactions.item or interactions.history}
    needed |= {"time": interactions.time} if interactions.time else {}
    leave_out(tables, "interaction_rows", "said", needed, table, output)
    order = "NULL"
    if interactions.time is not None:
        order = check_times(tables, table, interactions.time, interactions.time_formats, output).seconds
    if interactions.history is not None:
        unfold(tables, table, interactions.history, interactions.item, order, output)
    refuse_header(tables, interactions, "--names")


def read_items(tables: Tables, items: Source, output: Path) -> Source:
    """The items into the table `item_lines` and, with their texts, `described`; returns `items` with its texts.

    Raises:
        InputError: see `read_files`.
    """
    table = items.table
    print(f"reading {table.path} ({table.format}, {table.encoding})")
    named = items.texts
    if named is None:
        found = field_names(tables, table, output) if table.rows_name_fields else table.texts
        items = items._replace(texts=[name for name in found if name != items.item])
    fields = [f"{(table.columns.get(name) or json_column(name)).json}::VARCHAR" for name in items.texts]
    select = f"row_number() OVER () AS line, {table.columns[items.item].text} AS item_name, "
    read_table(tables, "item_rows", f"{select}[{', '.join(fields)}]::VARCHAR[] AS fields", table, output)
    clean_values(tables, "item_rows", ("item_name",), "items", table)
    leave_out(tables, "item_rows", "item_lines", {"item_name": items.item}, table, output)
    refuse_header(tables, items, "--item_names")
    chosen = named or choose_texts(tables, items)
    numbers = [items.texts.index(name) + 1 for name in chosen]
    tables.make("described", DESCRIBED.format(places=numbers, nothing=NOTHING))
    tell_marked(tables, table, numbers)
    for place, name in enumerate(named or () if table.rows_name_fields else (), start=1):  # which no header has
        if not tables.value(f"SELECT count(fields[{place}]) FROM described"):
            raise InputError(f"{table.path}: no line has text in {name!r} (--text_columns). {columns_of(table)}")
    return items._replace(texts=chosen)


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


def leave_out(tables: Tables, rows: str, name: str, needed: dict[str, str], table: Table, output: Path) -> None:
    """Make the view `name` of those `rows` that have a value in all columns needed; tell the others.

    Args:
        tables: where `rows` is.
        rows: the table of all rows of the file.
        name: of the view.
        needed: column -> what the file calls it.
        table: the file.
        output: see `place_of`.

    Raises:
        InputError: the file has no row, or none that is whole.
    """
    count = tables.value(f"SELECT count(*) FROM {rows}")
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
                f"{place_of(table, first, output)}: no {column.split('_')[0]} ({needed[column]}: {str(found)[1:-1]}); "
                f"{lacking} of {count} rows like this are left out"
            )
    if not tables.value(f"SELECT count(*) FROM {name}"):
        raise InputError(
            f"{table.path}: no row has a value in {' and '.join(needed.values())}. Name other columns with "
            f"{', '.join('--' + column.split('_')[0] + '_column' for column in needed)}."
        )


def choose_texts(tables: Tables, items: Source) -> list[str]:
    """The columns that describe an item, short values first, as a text may be cut at its end; tells both kinds."""
    step = tables.value("SELECT count(*) FROM item_rows") // LOOKED_AT + 1
    rows = [fields for (fields,) in tables.rows("SELECT fields FROM item_rows WHERE line % ? = 0", step)]
    looks = dict(zip(items.texts, map(look_at, zip(*rows, strict=True)), strict=True))
    others = {name: look for name, look in looks.items() if folded(name) not in TITLES or not look.pieces}
    idle = [name for name, look in others.items() if look.idle or names_items(tables, look.pieces[:PIECES])]
    chosen = sorted((name for name in looks if name not in idle), key=lambda name: looks[name].length)
    print(f"{items.table.path}: text {', '.join(chosen) or 'none'}")
    if idle:
        print(f"  left out (addresses, images, ids, numbers, flags): {', '.join(idle)}; --text_columns names others")
    return chosen


def names_items(tables: Tables, pieces: list[str]) -> bool:
    """Whether most words of a column are names of items."""
    words = [piece for piece in pieces if not piece.isdecimal()]
    known = "SELECT count(*) FROM (SELECT unnest(?::VARCHAR[]) AS item_name) SEMI JOIN item_lines USING (item_name)"
    return bool(words) and 2 * tables.value(known, words) > len(pieces)


def tell_marked(tables: Tables, table: Table, places: list[int]) -> None:
    """Print how many fields hold nothing but a word for nothing: somebody may have meant it."""
    fields = f"SELECT unnest(list_select(fields, {places}::INTEGER[])) AS field FROM item_lines"
    marked = f"regexp_matches(field, '{MARKED}') AND regexp_full_match(field, '{NOTHING}')"
    what = "count(*), list_sort(list(DISTINCT field))[:3]"
    count, found = next(tables.rows(f"SELECT {what} FROM ({fields}) WHERE {marked}"))
    if count:
        print(f"{table.path}: {count} text fields that are {', '.join(found)} count as empty")


def gather(tables: Tables, args: argparse.Namespace, interactions: Source) -> Histories:
    """Who had which items, in time order, after repeats and filters; makes the tables `users` and `items`.

    Raises:
        InputError: nothing is left, or no interaction is with an item of the items file.
    """
    tables.make("people", PEOPLE)
    tables.make("things", THINGS)
    if not tables.value("SELECT count(*) FROM things WHERE had AND last IS NOT NULL"):
        here, there = (tables.value(f"SELECT arg_min(item_name, line) FROM {name}") for name in ("said", "item_lines"))
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
