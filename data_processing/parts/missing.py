"""What counts as a missing value and what as text: one rule for all scripts, in Python and in DuckDB's SQL.

A value is missing if it is empty, blank, or a word that programs write in its place, such as NaN. A text field
is empty if its lists and objects hold nothing else; an item whose fields are all empty has no text.
"""

import json
import re
from typing import Any

WORDS = ("nan", "NaN", "NULL", "null", "None", "NA", "N/A", "n/a", "<NA>", "\\N")  # written for missing values

# Regular expressions on the JSON of a field. Python's re and DuckDB both read them; they may not contain a '.
_WORD = "(?:" + "|".join(re.escape(json.dumps(word)[1:-1]) for word in WORDS) + ")"
_BLANK = r"(?:[\[\]{},\x27\s" + "\u00a0\u3000" + r"]|\\[bfnrt\x22])*"  # also the brackets of lists written in a text
_KEY = r'"(?:[^"\\]|\\.)*"\s*:'
MARKED = rf'"{_BLANK}{_WORD}{_BLANK}"'  # finds a text that is one of the words
NOTHING = rf'(?:[\[\]{{}},\s]|{_KEY}|null|NaN|"{_BLANK}(?:{_WORD}{_BLANK})?")*'  # matches a whole field that is empty


def is_missing(value: Any) -> bool:
    """Whether the value of a user, an item or a time is missing."""
    return str(value).strip() in ("", *WORDS)


def missing_in(column: str) -> str:
    """SQL for `is_missing` of a column of text."""
    words = ", ".join(f"'{word}'" for word in ("", *WORDS))
    return f"coalesce(trim({column}), '') IN ({words})"


def has_text(value: Any) -> bool:
    """Whether a text field, or a list of fields, holds any text."""
    return re.fullmatch(NOTHING, json.dumps(value, ensure_ascii=False, skipkeys=True, default=str)) is None
