"""Files with the history of a user in one column: one row for each prefix, each impression, or each user."""

from pathlib import Path

from data_processing.parts.columns import Column, Table
from data_processing.parts.formats import locate_where
from data_processing.parts.missing import missing_in
from data_processing.parts.tables import Tables
from utils.errors import InputError

# A field with a list in text: ["a", "b"], ['a', 'b'], [1 2 3], a|b|c, a;b;c, a,b,c or a b c; NULL where it is no list.
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
ORDERED = """
    SELECT *, row_number() OVER in_order AS position, min(line) OVER (PARTITION BY user_name) AS first_line,
        first(time) OVER in_order AS first_time, first(history) OVER in_order AS first_history,
        lag(list_concat(history, target)) OVER in_order AS before
    FROM interactions WINDOW in_order AS (PARTITION BY user_name ORDER BY {order}, line)
"""
CONTINUES = "history = first_history OR history = list_slice(before, len(before) - len(history) + 1, len(before))"
IS_PREFIX = "history = list_slice(first_history, 1, len(history))"  # of the longest one
UNFOLDED = """
    SELECT row_number() OVER (ORDER BY first_line, position, item_position) AS line, user_name, item_name, time FROM (
        SELECT first_line, position, generate_subscripts(target, 1) AS item_position, user_name,
               unnest(target) AS item_name, time
        FROM ordered_rows UNION ALL
        SELECT first_line, 0, generate_subscripts(history, 1), user_name, unnest(history), first_time
        FROM ordered_rows WHERE position = 1)
"""


def list_of(column: Column, kind: str) -> str:
    """SQL of the items in a field, VARCHAR[]."""
    signs = "" if kind in ("recbole", "mind") else SIGNS.format(text=column.text)  # names may contain them there
    return f"list_filter({LIST.format(text=column.text, json=column.json, signs=signs)}, lambda name: trim(name) <> '')"


def history_columns(table: Table, history: str, item: str | None) -> dict[str, str]:
    """SQL of three columns: `history`, `target` with the items that come after it, and `item_name` with all of them."""
    after = "[]::VARCHAR[]"
    if item == "clicked":
        after = list_of(table.columns[item], table.format)
    elif item is not None:
        text = table.columns[item].text
        after = f"CASE WHEN trim({text}) <> '' THEN [{text}] ELSE [] END"
    before = list_of(table.columns[history], table.format)
    both = f"nullif(array_to_string(list_concat({before}, {after}), ' '), '')"
    return {"item_name": both, "history": before, "target": after}


def drop_missing_items(tables: Tables, rows: str, table: Table) -> None:
    """Remove missing items, such as NaN, from the lists of rows, and print how many there were."""
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


def unfold_histories(tables: Tables, table: Table, column: str, item: str | None, seconds: str, output: Path) -> None:
    """Replace the view `interactions`, whose rows have histories, by one of single interactions, and print how many.

    The history of a user's first row comes first, at the time of that row. Then come the items after the history of
    all rows, in order. Where rows have a history and nothing after it, the longest history is taken. `column` has the
    histories, `item` what comes after them, if that is in the file, and `seconds` is the SQL of the time.

    Raises:
        InputError: a history that does not continue the rows before it; names the lines.
    """
    unread = locate_where(tables, "interactions", "history IS NULL", table, output)
    if unread:
        raise InputError(
            f"{unread}: the history ({column}) is no list of "
            "items; expected ['a', 'b'], or items between blanks, commas, semicolons or bars."
        )
    order = "len(history) DESC" if item is None else f"{seconds}, len(history)"
    tables.make("ordered_rows", ORDERED.format(order=order))
    expected = IS_PREFIX if item is None else CONTINUES
    broken = locate_where(tables, "ordered_rows", f"NOT ({expected})", table, output)
    if broken:
        raise InputError(
            f"{broken}: the history ({column}) does not go on from the row before it of the same user. Give a file "
            "with one interaction a row; if this is one, name its item with --item_column."
        )
    tables.make("unfolded", UNFOLDED)
    tables.connection.execute("CREATE OR REPLACE VIEW interactions AS SELECT * FROM unfolded")
    found, users = next(tables.rows("SELECT count(*), count(DISTINCT user_name) FROM interactions"))
    timed = "" if seconds == "NULL" else ", those of a first history with the time of its row"
    print(f"{table.path}: {found} interactions of {users} users from histories ({column}) and what came after{timed}")
