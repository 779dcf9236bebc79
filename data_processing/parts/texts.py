"""What counts as missing and what as text: one rule for all scripts, in Python and in DuckDB's SQL.

A value is missing if it is empty, blank, or a word that programs write for nothing, such as NaN or NULL. A field is no
text if its lists and objects hold nothing else; an item without such fields has no text.
"""

import json
import math
import re
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

WORDS = ("nan", "NaN", "NULL", "null", "None", "NA", "N/A", "n/a", "<NA>", "\\N")  # for nothing

# Regular expressions on the JSON of a field, for Python's re and for SQL, where no ' may stand.
_WORD = "(?:" + "|".join(re.escape(json.dumps(word)[1:-1]) for word in WORDS) + ")"
_BLANK = r"(?:[\[\]{},\x27\s" + "\u00a0\u3000" + r"]|\\[bfnrt\x22])*"  # brackets also inside a text, as CSV has lists
_KEY = r'"(?:[^"\\]|\\.)*"\s*:'
MARKED = rf'"{_BLANK}{_WORD}{_BLANK}"'  # there is such a word
NOTHING = rf'(?:[\[\]{{}},\s]|{_KEY}|null|NaN|"{_BLANK}(?:{_WORD}{_BLANK})?")*'  # the whole field holds nothing

_NAME = re.compile(r"""(["'])[^"']*\1\s*:""")  # of a field of an object that is written in a text, as in CSV
_PIECE = re.compile(r"[^\s,;|'\"\[\]{}]+")
_ADDRESS = re.compile(r"(?i:https?:|www\.|//)\S+|\S+\.(?i:avif|bmp|gif|jpe?g|png|svg|tiff?|webp)(?:\?\S*)?")
_NUMBER = re.compile(r"(?:[\W\d_]|(?<=\d)[TZ])+|(?i:true|false|yes|no|[tfyn])")  # or date, or flag
MOST = 0.9  # of a column's values decide what it holds


def is_missing(value: Any) -> bool:
    """Whether a user, an item or a time is none."""
    return str(value).strip() in ("", *WORDS)


def missing_in(column: str) -> str:
    """The same as SQL, of a column of text."""
    words = ", ".join(f"'{word}'" for word in ("", *WORDS))
    return f"coalesce(trim({column}), '') IN ({words})"


def has_text(value: Any) -> bool:
    """Whether anything is in a text field, or in the fields of an item."""
    return re.fullmatch(NOTHING, json.dumps(value, ensure_ascii=False, skipkeys=True, default=str)) is None


class Look(NamedTuple):
    """What a column of the items' file holds, as some of its values tell."""

    length: float  # characters of a typical value
    pieces: list[str]  # its words, numbers and addresses
    idle: bool  # nearly all values are addresses, images, numbers, dates or flags


def look_at(values: Iterable[str | None]) -> Look:
    """The look of a column with these values, as JSON."""
    cut = [(len(value), pieces(json.loads(value))) for value in values if value is not None]
    cut = [(length, parts) for length, parts in cut if parts]
    length = statistics.median(length for length, _ in cut) if cut else math.inf
    idle = [parts for _, parts in cut if is_idle(parts)]
    return Look(length, [piece for _, parts in cut for piece in parts], bool(cut) and len(idle) >= MOST * len(cut))


def pieces(value: Any) -> list[str]:
    """What a field holds, cut at blanks and separators; of objects without the keys."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [piece for part in value for piece in pieces(part)]
    return _PIECE.findall(_NAME.sub(" ", str(value))) if has_text(value) else []


def is_idle(parts: list[str]) -> bool:
    """Whether a value is of numbers, dates and flags alone, or most of its characters are addresses."""
    addresses = sum(len(part) for part in parts if _ADDRESS.fullmatch(part))
    return all(map(_NUMBER.fullmatch, parts)) or 2 * addresses > sum(map(len, parts))
