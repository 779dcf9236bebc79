"""What is asked of a recommender: a history, what may be recommended, and texts of items that the catalog lacks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from serving.bundles import Bundle, checked_ids
from serving.store import ItemId
from utils.names import title

Text = dict[str, Any]  # fields of an item that the catalog does not have
Entry = ItemId | Text  # of a history


class Request(NamedTuple):
    """What is asked for one history, as `Recommender.recommend` takes it."""

    history: Sequence[Entry]
    k: int = 10
    exclude_history: bool = True
    exclude: Sequence[ItemId] = ()
    candidates: Sequence[ItemId] | None = None
    explain: bool = False
    skip_unknown: bool = False


class New(NamedTuple):
    """X items of histories that the catalog does not have; they stand as numbers N, N + 1, …"""

    embeddings: np.ndarray  # (X, E) float32, raw
    titles: list[str]


class Texts:
    """Texts of the items of histories that the catalog does not have."""

    def __init__(self):
        self.texts: list[dict[str, Any]] = []

    def encoded(self, bundle: Bundle) -> New:
        """Encode them all at once."""
        return New(bundle.encode(self.texts), [title(fields) for fields in self.texts])


class Barred:
    """Which numbers may not be recommended to whom, found once for the same list of ids."""

    def __init__(self, candidates: np.ndarray, number: Callable[[ItemId], int]):
        """Of the numbers that may be recommended to anyone, (N,) bool, and the function that gives an id's number.

        Requests must be alive as long as this is, since their lists are known by their identity.
        """
        self.candidates, self.number = candidates, number
        self._numbers: dict[int, list[int]] = {}
        self._last: tuple[Any, Any] = None, None

    def mask(self, exclude: Sequence[ItemId], candidates: Sequence[ItemId] | None) -> Tensor:
        """(N,) bool, True for what may not; ValueError for an unknown id, or if nothing may."""
        key = id(exclude), id(candidates)
        if self._last[0] != key:
            barred = ~self.candidates
            if candidates is not None:
                others = np.ones_like(barred)
                others[self._of(candidates)] = False
                barred |= others
            barred[self._of(exclude)] = True
            if barred.all():
                raise ValueError("there is nothing that may be recommended: no candidate is left")
            self._last = key, torch.from_numpy(barred)
        return self._last[1]

    def _of(self, ids: Sequence[ItemId]) -> list[int]:
        """The numbers of ids."""
        if id(ids) not in self._numbers:
            self._numbers[id(ids)] = [self.number(item) for item in checked_ids(ids)]
        return self._numbers[id(ids)]
