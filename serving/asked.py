"""What is asked of a recommender: a history, what may be recommended, and texts of items that the catalog lacks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from serving.bundles import Bundle, checked_ids
from serving.store import Change, ItemId
from utils.errors import shown
from utils.names import title
from utils.util import check_count

Text = dict[str, Any]  # fields of an item that the catalog does not have
Entry = ItemId | Text  # of a history
MOST, LONGEST = 16, 1_000  # conditions of a filter, and characters of one


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
    known = isinstance(conditions, (list, tuple)) and len(conditions) <= MOST
    if not known or not all(isinstance(text, str) and len(text) <= LONGEST for text in conditions):
        raise ValueError(
            f"filter is a list of at most {MOST} conditions of {LONGEST} characters, such as ['price < 20'], "
            f"found {shown(conditions)}"
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


class Barred:
    """Which numbers may not be recommended to whom, found once for the same list of ids."""

    def __init__(
        self,
        change: Change,
        number: Callable[[ItemId], int],
        matching: Callable[[Sequence[str]], np.ndarray],
    ):
        """Of a catalog at one time.

        Requests must be alive as long as this is, since their lists are known by their identity.

        Args:
            change: which numbers may be recommended to nobody.
            number: gives an id's number; ValueError for an unknown one.
            matching: which numbers meet conditions, (N,) bool; ValueError for odd ones.
        """
        self.change, self.number, self.matching = change, number, matching
        self._numbers: dict[int, list[int]] = {}
        self._last: tuple[Any, Any] = None, None

    def mask(self, request: Request) -> Tensor:
        """(N,) bool, True for what may not; ValueError for an unknown id, or if nothing may."""
        key = id(request.exclude), id(request.candidates), id(request.filter)
        if self._last[0] != key:
            barred = self.change.mask()
            if request.candidates is not None:
                others = np.ones_like(barred)
                others[self._of(request.candidates)] = False
                barred |= others
            if len(request.filter):
                barred |= ~self.matching(request.filter)
            barred[self._of(request.exclude)] = True
            if barred.all():
                raise ValueError("there is nothing that may be recommended: no candidate is left")
            self._last = key, torch.from_numpy(barred)
        return self._last[1]

    def _of(self, ids: Sequence[ItemId]) -> list[int]:
        """The numbers of ids."""
        if id(ids) not in self._numbers:
            self._numbers[id(ids)] = [self.number(item) for item in checked_ids(ids)]
        return self._numbers[id(ids)]
