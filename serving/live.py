"""Live histories: of users who are there now, so that one more item costs one item and not a history.

    live = LiveHistories(Recommender.open("my_bundle"))
    live.start("anna", ["B0012", "B0831"])
    live.add("anna", "B0007")
    live.recommend("anna", k=5)

The model keeps keys and values of each history (utils/past_key_values.py), 74 kB for an item at the published size.
A history that fills the window begins anew with the newest three quarters of it, since positions count from the first
item that is read; so the model reads at least that much of a long history, and at most what it reads of any.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from serving.asked import Request, Texts, nothing
from serving.recommender import Barred, Recommendation, Recommender, lists
from serving.store import ItemId
from serving.view import View
from utils.data import Sequences
from utils.errors import shown
from utils.past_key_values import UserCache, append_hidden, split_cache
from utils.util import check_count

USERS, BYTES = 100_000, 1 << 30  # that are kept, at most
KEPT = 0.75  # of the window, that a history begins anew with
NUMBER_BYTES = 64  # of an item of a history, beside keys and values


@dataclass
class Live:
    """A user's history."""

    ids: list[ItemId]
    numbers: list[int]  # of the ids, in the catalog as it was last seen
    cache: UserCache | None = None  # of the newest items; None where the ranking does not read the model
    hidden: Tensor | None = None  # (K, D) float32, final states of the last item

    @property
    def bytes(self) -> int:
        """How much it takes."""
        kept = () if self.cache is None else (self.cache.keys, self.cache.values, self.hidden)
        return NUMBER_BYTES * len(self.ids) + sum(tensor.nbytes for tensor in kept)


class LiveHistories:
    """Histories by user, of which those least recently used go when there are too many; safe from several threads."""

    def __init__(self, recommender: Recommender, users: int = USERS, most_bytes: int = BYTES):
        """Keep at most so many `users`, and at most `most_bytes` of what the model keeps of them."""
        if not isinstance(recommender, Recommender):
            raise ValueError(f"live histories are of a Recommender, found {shown(recommender)}")
        check_count(users, "users")
        check_count(most_bytes, "most_bytes")
        self.recommender, self.most_users, self.most_bytes = recommender, users, most_bytes
        self.bytes = 0  # taken now
        self._lives: OrderedDict[Hashable, Live] = OrderedDict()  # least recently used first
        self._view: View | None = None  # by which the numbers were looked up
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many users are kept."""
        return len(self._lives)

    def __contains__(self, user: Hashable) -> bool:
        """Whether there is a history of the user."""
        return user in self._lives

    def start(self, user: Hashable, history: Sequence[ItemId]) -> None:
        """Begin a user's history, in place of an earlier one; ValueError for an empty one, or an unknown id."""
        checked_user(user)
        with self._lock:
            view = self._current()
            numbers = self._numbers(view, history)
            self._keep(user, self._computed(view, list(history), numbers))

    def add(self, user: Hashable, item: ItemId) -> None:
        """Add an item to a user's history.

        ValueError for an unknown id, or a user without a history: who was away for long has to be started again.
        """
        with self._lock:
            view = self._current()
            live = self._found(view, user)
            (number,) = self._numbers(view, [item])
            ids, numbers = [*live.ids, item], [*live.numbers, number]
            if live.cache is None or live.cache.items + 2 > view.bundle.model.config.window:
                live = self._computed(view, ids, numbers)
            else:
                batch = view.batch(Sequences.of([number]), nothing(view.bundle))
                hidden, (cache,) = append_hidden(view.bundle.model, [live.cache], batch.codes, batch.embeddings)
                live = Live(ids, numbers, cache, hidden[0])
            self._keep(user, live)

    def recommend(
        self,
        user: Hashable,
        k: int = 10,
        *,
        exclude_history: bool = True,
        exclude: Sequence[ItemId] = (),
        candidates: Sequence[ItemId] | None = None,
        explain: bool = False,
        filter: Sequence[str] = (),  # noqa: A002 - as `Recommender.recommend`
    ) -> list[Recommendation]:
        """What comes next, as `Recommender.recommend` finds it; ValueError as there, or if the user has no history."""
        request = Request((), k, exclude_history, exclude, candidates, explain, filter=filter)
        request.check()
        with self._lock:
            view = self._current()
            live = self._found(view, user)
        barred = Barred(view)
        read, new = Sequences.of(live.numbers), nothing(view.bundle)
        (found,) = lists(view, [request], read, barred, new, self._score(view, live))
        return found

    def read(self, user: Hashable) -> int:
        """How many of a user's newest items the model has read; 0 where the ranking has no model."""
        with self._lock:
            live = self._found(self._current(), user)
            return 0 if live.cache is None else live.cache.items

    def forget(self, user: Hashable) -> None:
        """Drop a user's history, if there is one."""
        checked_user(user)
        with self._lock:
            self._drop(user)

    def _score(self, view: View, live: Live) -> Callable[[Sequences], Tensor]:
        """The function that scores all numbers after one history, from what is kept of it."""

        def score(history: Sequences) -> Tensor:
            with torch.inference_mode():
                said = None if live.hidden is None else view.bundle.model.said(live.hidden[None])
            return view.combined(history, nothing(view.bundle), said)

        return score

    def _current(self) -> View:
        """The bundle as it is now. Of one that was made anew nothing that was kept is of use but the ids."""
        view, earlier = self.recommender.view(), self._view
        if earlier is not None and earlier.bundle is not view.bundle:
            for live in self._lives.values():
                live.numbers = []  # none that is current, so that all is computed anew
        self._view = view
        return view

    def _found(self, view: View, user: Hashable) -> Live:
        """A user's history, computed anew if an item of it has another text now, or is gone."""
        live = self._lives.get(checked_user(user))
        if live is None:
            raise ValueError(f"there is no live history of {shown(user)}: start it with all of its items")
        self._lives.move_to_end(user)
        numbers = [view.look_up(item) for item in live.ids]
        if numbers != live.numbers:
            kept = [(item, number) for item, number in zip(live.ids, numbers, strict=True) if number is not None]
            if not kept:
                self._drop(user)
                raise ValueError(f"no item of the live history of {shown(user)} is in the catalog any more")
            live = self._computed(view, *map(list, zip(*kept, strict=True)))
            self._keep(user, live)
        return live

    def _numbers(self, view: View, history: Sequence[ItemId]) -> list[int]:
        texts = [item for item in history if isinstance(item, dict)] if isinstance(history, (list, tuple)) else []
        if texts:
            raise ValueError(f"live histories have ids of the catalog, found {shown(texts[0])}")
        return view.read(history, Texts())

    @torch.inference_mode()
    def _computed(self, view: View, ids: list[ItemId], numbers: list[int]) -> Live:
        """A history whose newest items are computed."""
        if not view.bundle.reads_model:
            return Live(ids, numbers)
        model, cache = view.bundle.model, DynamicCache()
        most = model.config.window - 1
        read = numbers if len(numbers) <= most else numbers[-max(1, int(KEPT * most)) :]
        batch = view.batch(Sequences.of(read), nothing(view.bundle))
        hidden = model.hidden(batch, cache)
        (kept,) = split_cache(cache, batch.last)
        return Live(ids, numbers, kept, hidden.unflatten(0, (len(read), -1))[-1].clone())

    def _keep(self, user: Hashable, live: Live) -> None:
        """Keep a history as the one used last, and let those go that are too many."""
        self._drop(user)
        self._lives[user] = live
        self.bytes += live.bytes
        while len(self._lives) > 1 and (len(self._lives) > self.most_users or self.bytes > self.most_bytes):
            self._drop(next(iter(self._lives)))

    def _drop(self, user: Hashable) -> None:
        live = self._lives.pop(user, None)
        if live is not None:
            self.bytes -= live.bytes


def checked_user(user: Hashable) -> Hashable:
    """The user; ValueError for what can be no key, such as a list."""
    try:
        hash(user)
    except TypeError:
        raise ValueError(f"a user is a text, a number or a tuple of them, found {shown(user)}") from None
    return user
