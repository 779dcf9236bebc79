"""Files with the history of a user in one field: one row for each prefix, for each impression, or for each user."""

from pathlib import Path

from data_processing.parts.columns import Column, Table
from data_processing.parts.formats import places_of
from data_processing.parts.tables import Tables
from data_processing.parts.text_files import EXAMPLES
from data_processing.parts.texts import missing_in
from utils.errors import InputError

# A field with a list in text: ["a", "b"], ['a', 'b'], [1 2 3], a|b|c, a;b;c, a,b,c or a b c; NULL where it is none.
LIST = r"""
    CASE WHEN json_type({json}) = 'ARRAY' THEN from_json({json}, '["VARCHAR"]')
         WHEN coalesce(trim({text}), '') = '' THEN [] {signs}
         ELSE string_split_regex(trim({text}, ' []'), '\s+') END
"""
SIGNS = r"""
         WHEN json_type(TRY_CAST({text} AS JSON)) = 'ARRAY' THEN from_json(TRY_CAST({text} AS JSON), '["VARCHAR"]')
         WHEN regexp_matches({text}, '(?s)^\s*\[.*[,''"].*\]\s*$') THEN TRY_CAST({text} AS VARCHAR[])
         WHEN contains({text}, '|') THEN string_split({text}, '|')
         WHEN contains({text}, ';') THEN string_split({text}, ';')
         WHEN contains({text}, ',') THEN string_split({text}, ',')
"""
TURNS = """
    SELECT *, row_number() OVER turns AS turn, min(line) OVER (PARTITION BY user_name) AS met,
        first(time) OVER turns AS start, first(history) OVER turns AS opening,
        lag(list_concat(history, target)) OVER turns AS before
    FROM said WINDOW turns AS (PARTITION BY user_name ORDER BY {order}, line)
"""
GOES_ON = "history = opening OR history = list_slice(before, len(before) - len(history) + 1, len(before))"
BEGINS = "history = list_slice(opening, 1, len(history))"  # the longest one
UNFOLDED = """
    SELECT row_number() OVER (ORDER BY met, turn, place) AS line, user_name, item_name, time FROM (
        SELECT met, turn, generate_subscripts(target, 1) AS place, user_name, unnest(target) AS item_name, time
        FROM turns UNION ALL
        SELECT met, 0, generate_subscripts(history, 1), user_name, unnest(history), start FROM turns WHERE turn = 1)
"""


def list_of(column: Column, kind: str) -> str:
    """SQL of the items in a field, VARCHAR[]."""
    signs = "" if kind in ("recbole", "mind") else SIGNS.format(text=column.text)  # which names may have there
    return f"list_filter({LIST.format(text=column.text, json=column.json, signs=signs)}, lambda name: trim(name) <> '')"


def history_columns(table: Table, history: str, item: str | None) -> dict[str, str]:
    """SQL of what `said` has of such a row: the history, the items that come after it, and all of them as item_name."""
    after = "[]::VARCHAR[]"
    if item == "clicked":
        after = list_of(table.columns[item], table.format)
    elif item is not None:
        text = table.columns[item].text
        after = f"CASE WHEN trim({text}) <> '' THEN [{text}] ELSE [] END"
    before = list_of(table.columns[history], table.format)
    both = f"nullif(array_to_string(list_concat({before}, {after}), ' '), '')"
    return {"item_name": both, "history": before, "target": after}


def leave_out_missing(tables: Tables, rows: str, table: Table) -> None:
    """Take the items that are none, such as NaN, out of the lists of rows, and tell how many."""
    lacks = f"list_filter(list_concat(history, target), lambda name: {missing_in('name')})"
    count, found = next(
        tables.rows(f"SELECT sum(len({lacks})), list_sort(list_distinct(flatten(list({lacks}))))[:3] FROM {rows}")
    )
    if count:
        kept = ", ".join(
            f"{name} = list_filter({name}, lambda x: NOT {missing_in('x')})" for name in ("history", "target")
        )
        tables.connection.execute(f"UPDATE {rows} SET {kept}")
        print(f"{table.path}: {count} items of histories that are {str(found)[1:-1]} are left out")


def unfold(tables: Tables, table: Table, column: str, item: str | None, seconds: str, beside: Path) -> None:
    """Make `said`, of which the rows have histories, a view of single interactions, and tell how many.

    The history of a user's first row comes first, at that row's time, then the items after it of all rows in order;
    where rows have a history and nothing after it, the longest history.

    Args:
        tables: with `said`.
        table: the file.
        column: the one with the histories.
        item: the column with the item that comes after a history, if there is one.
        seconds: SQL of the time.
        beside: where files are written beside.

    Raises:
        InputError: a history that does not go on from the rows before it; names the lines.
    """
    unread = [line for (line,) in tables.rows("SELECT line FROM said WHERE history IS NULL ORDER BY line")]
    if unread:
        raise InputError(
            f"{places_of(table, unread[:EXAMPLES], len(unread), beside)}: the history ({column}) is no list of items; "
            "expected ['a', 'b'], or items between blanks, commas, semicolons or bars."
        )
    order = "len(history) DESC" if item is None else f"{seconds}, len(history)"
    tables.make("turns", TURNS.format(order=order))
    fits = BEGINS if item is None else GOES_ON
    astray = [line for (line,) in tables.rows(f"SELECT line FROM turns WHERE NOT ({fits}) ORDER BY line")]
    if astray:
        raise InputError(
            f"{places_of(table, astray[:EXAMPLES], len(astray), beside)}: the history ({column}) does not go on from "
            "the row before it of the same user. Give a file with one interaction a row; if this is one, name its item "
            "with --item_column."
        )
    tables.make("unfolded", UNFOLDED)
    tables.connection.execute("CREATE OR REPLACE VIEW said AS SELECT * FROM unfolded")
    found, users = next(tables.rows("SELECT count(*), count(DISTINCT user_name) FROM said"))
    timed = "" if seconds == "NULL" else ", those of a first history with the time of its row"
    print(f"{table.path}: {found} interactions of {users} users from histories ({column}) and what came after{timed}")
