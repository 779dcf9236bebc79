"""Recommendations from a bundle: histories in, items with probabilities and reasons out.

    recommender = Recommender.open("my_bundle")
    recommender.recommend([["B0012", "B0831"]], k=5)

Letters of the shapes as in utils/data.py: B histories, N numbers of the bundle's items, E embedding width.
"""

import difflib
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_processing.parts.columns import clean
from serving.asked import Entry, New, Request, Text, Texts, check_conditions, nothing
from serving.bundles import Bundle, checked_ids
from serving.scoring import batches_of_equal_work
from serving.store import Item, ItemId, check_id, folded
from serving.view import Reason, View
from utils.data import Sequences
from utils.errors import InputError, shown
from utils.util import check_count

SCORES = 1 << 24  # that are held at once, which bounds memory
USERS = 48  # of mean length, whose histories the model reads together


class Recommendation(NamedTuple):
    """An item and how likely it is the next one."""

    id: ItemId
    title: str
    probability: float  # among all items that may be recommended, by the bundle's scores
    because: tuple[Reason, ...] = ()  # best first


class Barred:
    """Which numbers may not be recommended to whom, found once for the same list of ids."""

    def __init__(self, view: View):
        """Of a view. Requests must be alive as long as this is, since their lists are known by their identity."""
        self.view = view
        self._numbers: dict[tuple[int, bool], list[int]] = {}
        self._last: tuple[Any, Any] = None, None

    def mask(self, request: Request) -> Tensor:
        """(N,) bool, True for what may not; ValueError for an unknown id, or if nothing may."""
        key = id(request.exclude), id(request.candidates), id(request.filter), request.skip_unknown
        if self._last[0] != key:
            barred = self.view.change.mask()
            if request.candidates is not None:
                others = np.ones_like(barred)
                others[self._of(request.candidates, request.skip_unknown)] = False
                barred |= others
            if len(request.filter):
                barred |= ~self.view.matching(request.filter).numbers
            barred[self._of(request.exclude, request.skip_unknown)] = True
            if barred.all():
                raise ValueError("there is nothing that may be recommended: no candidate is left")
            self._last = key, torch.from_numpy(barred)
        return self._last[1]

    def _of(self, ids: Sequence[ItemId], skip_unknown: bool) -> list[int]:
        """The numbers of ids; with `skip_unknown` without those that no item has."""
        key = id(ids), skip_unknown
        if key not in self._numbers:
            find = self.view.look_up if skip_unknown else self.view.number
            numbers = map(find, checked_ids(ids))
            self._numbers[key] = [number for number in numbers if number is not None]
        return self._numbers[key]


class Recommender:
    """Recommends from a bundle, which may change meanwhile: every call sees it as it is then.

    Safe to use from several threads. A bundle that was made anew in the same place is opened anew, too.
    """

    def __init__(self, bundle: Bundle, kept: View | None = None):
        """Of a bundle; with `kept` one that always answers from that view."""
        self.bundle, self._view, self._kept, self._changing = bundle, kept, kept is not None, threading.Lock()

    @classmethod
    def open(cls, folder: str | Path, device: str = "cpu", half: bool = False) -> "Recommender":
        """Open a bundle; with `half` its model computes with weights of 16 bits.

        InputError if it is damaged, ValueError for a folder or device that is none.
        """
        if not isinstance(folder, (str, Path)) or not isinstance(half, bool):
            found = f"{shown(folder)} and {shown(half)}"
            raise ValueError(f"a bundle is the path of a folder, and half True or False, found {found}")
        try:
            torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"device is 'cpu', 'cuda' or the like, found {shown(device)}") from error
        return cls(Bundle.open(Path(folder), device, half))

    # What users call

    def recommend(
        self,
        histories: Sequence[Sequence[Entry]],
        k: int = 10,
        *,
        exclude_history: bool = True,
        exclude: Iterable[ItemId] = (),
        candidates: Iterable[ItemId] | None = None,
        explain: bool = False,
        skip_unknown: bool = False,
        filter: Sequence[str] = (),  # noqa: A002 - as it is called everywhere
    ) -> list[list[Recommendation]]:
        """The k items that most likely come next in each history, best first; fewer where fewer may be recommended.

        Args:
            histories: each with items in the order of time, by their ids in the shop, or by their text fields, such as
                {"title": "Blue pen"}. A title that an item has, and nothing else, stands for this item; other texts are
                those of an item that the catalog does not have, and encoded.
            k: length of the lists.
            exclude_history: recommend nothing that is in the history.
            exclude: ids of items that are not recommended.
            candidates: ids of the only items that are, such as those in stock; None: all.
            explain: say which items of the history speak for each.
            skip_unknown: pass over ids that no item has, in histories, exclude and candidates. A history of such ids
                alone gets an empty list.
            filter: conditions on fields, all of which an item meets that is recommended, such as ["price < 20"].

        Raises:
            ValueError: an empty history, an id that no item has, or nothing that may be recommended.
        """
        if isinstance(histories, (str, bytes, dict)) or not isinstance(histories, Iterable):
            raise ValueError(f"histories are a list of lists, found {shown(histories)}")
        exclude, candidates = checked_ids(exclude), None if candidates is None else checked_ids(candidates)
        asked = (k, exclude_history, exclude, candidates, explain, skip_unknown, filter)
        answers = self.answer([Request(history, *asked) for history in histories])
        for row, found in enumerate(answers):
            if isinstance(found, ValueError):
                raise ValueError(f"history {row}: {found}" if len(answers) > 1 else str(found)) from found
        return answers

    def answer(self, requests: Sequence[Request]) -> list[list[Recommendation] | ValueError]:
        """The lists of requests that may differ in all, which are computed together.

        A request at fault gets its ValueError in place of a list, and the others their lists.
        """
        view, new = self.view(), Texts()
        answers: list[Any] = [[] for _ in requests]
        read, barred = {}, Barred(view)
        for row, request in enumerate(requests):
            try:
                request.check()
                numbers = view.read(request.history, new, request.skip_unknown)
                barred.mask(request)
                if numbers:
                    read[row] = numbers
            except ValueError as error:
                answers[row] = error
        encoded = nothing(view.bundle)
        try:
            encoded = new.encoded(view.bundle)
        except InputError as error:  # which is nothing to those who gave ids
            for row in [row for row, numbers in read.items() if max(numbers) >= view.change.numbers]:
                del read[row]
                answers[row] = ValueError(str(error))
        if read:
            asked = [requests[row] for row in read]
            score = partial(view.scores, new=encoded)
            found = lists(view, asked, Sequences.of(*read.values()), barred, encoded, score)
            for row, one in zip(read, found, strict=True):
                answers[row] = one
        return answers

    def matching(self, conditions: Sequence[str]) -> tuple[int, dict[str, int]]:
        """How many items that may be recommended meet all conditions, as of `recommend`; ValueError for an odd one.

        The second value says how many items have no value of a field that is named, which meet no condition on it.
        """
        check_conditions(conditions)
        found = self.view().matching(conditions)
        return int(found.numbers.sum()), found.lacking

    def has_item(self, item: Any) -> bool:
        """Whether the catalog has an item with this id; False for what is no id."""
        try:
            return self.view().look_up(check_id(item)) is not None
        except ValueError:
            return False

    def find(self, word: str) -> list[Item]:
        """The item with this id, or else some with this title, without regard to case; none for none."""
        check_word(word)
        store = self.view().bundle.store
        number = store.number(clean(word))
        return store.items(store.titled(word) if number is None else [number])

    def suggest(self, word: str) -> list[str]:
        """Up to three ids or titles that begin like a word and are much like it, or titles that hold it."""
        check_word(word)
        store, word = self.view().bundle.store, clean(word)
        known = {folded(name): name for name in store.beginning_like(word)}
        near = [known[name] for name in difflib.get_close_matches(folded(word), list(known), n=3, cutoff=0.7)]
        held = [item.title for item in store.items(store.search(word, 3))]  # which the word is a part of
        return list(dict.fromkeys([*near, *held]))[:3]

    def snapshot(self) -> "Recommender":
        """A recommender that keeps to the items and texts as they are now, whatever becomes of the bundle.

        Fields that are not encoded, such as prices, are those of the time at which a filter first looks at them.
        """
        view = self.view()
        return Recommender(view.bundle, view)

    def similar_items(self, item: Entry, k: int = 10) -> list[tuple[Item, float]]:
        """The k items whose texts are nearest to one's, with their cosines, best first.

        Raises:
            ValueError: an id that no item has, or an item without text.
        """
        check_count(k, "k")
        view = self.view()
        new = Texts()
        (place,) = view.read([item], new)
        query = view.rows(np.array([place]), new.encoded(view.bundle))[0]
        if not query.any():
            raise ValueError(f"item {shown(item)} has no text")
        scores = view.nearest(query)
        scores[view.change.barred] = -torch.inf
        if place < view.change.numbers:
            scores[place] = -torch.inf
        places = best(scores, k)
        return list(zip(view.bundle.store.items(places.tolist()), scores[places].tolist(), strict=True))

    def explain(self, history: Sequence[Entry], item: ItemId) -> tuple[Reason, ...]:
        """Which items of a history speak for an item, best first; ValueError as `recommend`."""
        view, new = self.view(), Texts()
        numbers = np.array(view.read(history, new))
        return view.reasons(numbers, view.number(item), new.encoded(view.bundle))

    def add_items(self, items: Iterable[tuple[ItemId, Text]]) -> None:
        """Add items: ids of the shop, and text fields, which are encoded; see `Bundle.add`."""
        self.view().bundle.add(items)

    def update_items(self, items: Iterable[tuple[ItemId, Text]]) -> None:
        """Change the texts of items; see `Bundle.update`."""
        self.view().bundle.update(items)

    def remove_items(self, ids: Iterable[ItemId]) -> None:
        """Remove items; see `Bundle.remove`."""
        self.view().bundle.remove(ids)

    # How it is done

    def view(self) -> View:
        """The bundle as it is now, for one call."""
        view = self._view
        if self._kept:
            return view
        if view is None or not view.bundle.is_current() or view.change.generation != view.bundle.store.generation():
            with self._changing:
                if not self.bundle.is_current():
                    self.bundle = Bundle.open(self.bundle.path.parent, self.bundle.device, self.bundle.half)
                view = self._view = View(self.bundle, self._view)
        return view


def check_word(word: Any) -> None:
    """ValueError unless this is a text."""
    if not isinstance(word, str):
        raise ValueError(f"an id or a title is looked up as text, found {shown(word)}")


def lists(
    view: View,
    requests: Sequence[Request],
    histories: Sequences,
    barred: Barred,
    new: New,
    score: Callable[[Sequences], Tensor],
) -> list[list[Recommendation]]:
    """The list of each request, whose histories are given by numbers, by the scores (B, N) of some at a time."""
    found: list[Any] = [None] * len(requests)
    known, window = view.change.numbers, view.bundle.model.config.window if view.bundle.reads_model else 1
    most = max(1, SCORES // known)
    for batch in batches_of_equal_work(np.minimum(histories.lengths, window), USERS):
        for rows in np.split(batch, range(most, len(batch), most)):
            part = histories.select(rows)
            for row, own, left in zip(rows, part.lists(), score(part), strict=True):
                left.masked_fill_(barred.mask(requests[row]), -torch.inf)
                if requests[row].exclude_history:
                    left[[number for number in own if number < known]] = -torch.inf
                places = best(left, requests[row].k)
                chances = (left[places] - left.logsumexp(0)).exp()  # among what may be recommended
                found[row] = listed(view, requests[row], own, places, chances, new)
    return found


def listed(
    view: View, request: Request, history: list[int], places: Tensor, chances: Tensor, new: New
) -> list[Recommendation]:
    """The recommendations of the numbers `places` (k,), with their probabilities (k,)."""
    own, numbers = np.array(history), places.tolist()
    why = [view.reasons(own, number, new) if request.explain else () for number in numbers]
    items = zip(view.bundle.store.items(numbers), chances.tolist(), why, strict=True)
    return [Recommendation(item.id, item.title, chance, reasons) for item, chance, reasons in items]


def best(scores: Tensor, k: int) -> Tensor:
    """Places (k,) of the best of scores (N,), best first, of equal ones the first; fewer where others are -inf."""
    k = min(k, len(scores))
    least = scores.topk(k).values[-1]
    places = (scores >= least).nonzero()[:, 0]  # more than k, where several are as good as the last
    places = places[scores[places].sort(descending=True, stable=True).indices[:k]]
    return places[scores[places] > -torch.inf]
