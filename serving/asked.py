"""What is asked of a recommender: a history, what may be recommended, and texts of items that the catalog lacks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from serving.bundles import Bundle
from serving.store import ItemId, whole
from utils.errors import shown
from utils.names import title
from utils.util import check_count

Text = dict[str, Any]  # fields of an item that the catalog does not have
Entry = ItemId | Text  # of a history
MOST_CONDITIONS, LONGEST_CONDITION = 16, 1_000  # of a filter, and characters of one


class Request(NamedTuple):
    """What is asked for one history, as `Recommender.recommend` takes it."""

    history: Sequence[Entry]
    k: int = 10
    exclude_history: bool = True
    exclude: Sequence[ItemId] = ()
    candidates: Sequence[ItemId] | None = None
    explain: bool = False
    skip_unknown: bool = False
    filter: Sequence[str] = ()

    def check(self) -> None:
        """ValueError for values that make no sense, whatever the catalog has."""
        check_count(self.k, "k")
        for name in ("exclude_history", "explain", "skip_unknown"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise ValueError(f"{name} is True or False, found {shown(getattr(self, name))}")
        check_conditions(self.filter)


def check_conditions(conditions: Any) -> None:
    """ValueError unless these are a list of a few texts."""
    known = isinstance(conditions, (list, tuple)) and len(conditions) <= MOST_CONDITIONS
    if not known or not all(
        type(text) is str and whole(text) == text and len(text) <= LONGEST_CONDITION for text in conditions
    ):
        raise ValueError(
            f"filter is a list of at most {MOST_CONDITIONS} conditions of {LONGEST_CONDITION} characters, such as "
            f"['price < 20'], found {shown(conditions)}"
        )


class New(NamedTuple):
    """X items of histories that the catalog does not have; they stand as numbers N, N + 1, …"""

    embeddings: np.ndarray  # (X, E) float32, raw
    titles: list[str]


def nothing(bundle: Bundle) -> New:
    """No texts of new items."""
    return New(np.empty((0, bundle.width), dtype=np.float32), [])


class Texts:
    """Texts of the items of histories that the catalog does not have."""

    def __init__(self):
        self.texts: list[dict[str, Any]] = []

    def encoded(self, bundle: Bundle) -> New:
        """Encode them all at once."""
        return New(bundle.encode(self.texts), [title(fields) for fields in self.texts])
