"""What the items of a data set directory are called: the ids that they had, and their titles."""

from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import InputError, shown
from utils.files import read_jsonl
from utils.pickles import load_pickle

TITLES = ("title", "name")  # fields that hold one
LONGEST = 80  # characters of a text that stands in for a title
REMEDY = "Make the data set again (import_dataset.py), or leave out --with_titles and --report."


class Names(NamedTuple):
    """Of N items, by their numbers."""

    ids: list[Any]  # of item_ids.jsonl; the numbers themselves where there is none
    titles: list[str]  # empty for an item without text


def load_names(folder: Path, items: int, needed: bool = True) -> Names:
    """Read item_ids.jsonl, where it is there, and item_text_dict.pkl of a data set directory of N `items`.

    The title is the text field "title" or "name", or else the beginning of all text. Unless titles are `needed`, a
    data set without texts has empty ones.

    Raises:
        InputError: no texts, a damaged file, or ids that are not one for each item, in order.
    """
    texts_path = folder / "item_text_dict.pkl"
    texts = load_pickle(texts_path, dict, REMEDY) if needed or texts_path.exists() else {}
    ids, path = list(range(items)), folder / "item_ids.jsonl"
    if path.is_file():
        lines = [record for _, record in read_jsonl(path, REMEDY)]
        if [record.get("id") for record in lines] != ids:
            raise InputError(f"{path} does not name the items 0 to {items - 1}, one a line and in order. {REMEDY}")
        ids = [record.get("item") for record in lines]
    return Names(ids, [title(texts.get(item)) for item in range(items)])


def title(fields: Any) -> str:
    """The title among an item's text fields; InputError unless these are a dict, or None for an item without text."""
    if fields is None:
        return ""
    if not isinstance(fields, dict):
        raise InputError(f"item_text_dict.pkl: found {shown(fields)}, expected a dict of text fields. {REMEDY}")
    named = next((fields[name] for name in TITLES if fields.get(name)), None)
    return str(named) if named is not None else " ".join(map(str, fields.values()))[:LONGEST]
