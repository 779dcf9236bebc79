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
from model import Items
from serving.asked import Barred, Entry, New, Request, Text, Texts
from serving.bundles import Bundle, checked_ids
from serving.log import grow_log
from serving.scoring import batches_of_equal_work, code_scores
from serving.store import Change, Item, ItemId, check_id, folded
from utils.blend import Blender, Domain
from utils.checkpoint import ITEMS
from utils.data import Catalog, SeqBatch, Sequences, make_batch
from utils.errors import InputError, shown
from utils.search import ItemSearch
from utils.util import check_count

SCORES = 1 << 24  # that are held at once, which bounds memory
USERS = 48  # of mean length, whose histories the model reads together
KEPT_IDS = 1 << 20  # whose numbers are kept in memory
REASONS = 2  # items of the history that a recommendation is explained with, at most


class Reason(NamedTuple):
    """An item of the history that speaks for a recommendation."""

    id: ItemId | None  # None for an item that the catalog does not have
    title: str
    similarity: float  # cosine of the texts, -1 to 1
    followed: float  # the share of all that came after it in the log, 0 to 1


class Recommendation(NamedTuple):
    """An item and how likely it is the next one."""

    id: ItemId
    title: str
    probability: float  # among all items that may be recommended, by the bundle's scores
    because: tuple[Reason, ...] = ()  # best first


class View(NamedTuple):
    """A bundle as it is at one time; a call keeps to one, whatever becomes of the bundle meanwhile."""

    bundle: Bundle
    change: Change
    domain: Domain
    blender: Blender | None
    catalog: Catalog | None  # what the model reads
    search: ItemSearch | None  # of a model that predicts items
    codes: Tensor | None  # (N, K) int16, of one that predicts codes
    candidates: np.ndarray  # (N,) bool
    numbers: dict[ItemId, int]  # of ids that were looked up


class Recommender:
    """Recommends from a bundle, which may change meanwhile: every call sees it as it is then.

    Safe to use from several threads. A bundle that was made anew in the same place is opened anew, too.
    """

    def __init__(self, bundle: Bundle, kept: View | None = None):
        """Of a bundle; with `kept` one that always answers from that view."""
        self.bundle, self._view, self._kept, self._changing = bundle, kept, kept is not None, threading.Lock()

    @classmethod
    def open(cls, folder: str | Path, device: str = "cpu", half: bool = False) -> "Recommender":
        """Open a bundle; with `half` its model computes with weights of 16 bits. InputError if it is damaged."""
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
    ) -> list[list[Recommendation]]:
        """The k items that most likely come next in each history, best first; fewer where fewer may be recommended.

        Args:
            histories: each with items in the order of time, by their ids in the shop. An item that the catalog does not
                have is given by its text fields, such as {"title": "Blue pen"}, and encoded.
            k: length of the lists.
            exclude_history: recommend nothing that is in the history.
            exclude: ids of items that are not recommended.
            candidates: ids of the only items that are, such as those in stock; None: all.
            explain: say which items of the history speak for each.
            skip_unknown: pass over ids in histories that no item has. A history of such ids alone gets an empty list.

        Raises:
            ValueError: an empty history, an id that no item has, or nothing that may be recommended.
        """
        if isinstance(histories, (str, bytes, dict)) or not isinstance(histories, Iterable):
            raise ValueError(f"histories are a list of lists, found {shown(histories)}")
        exclude, candidates = checked_ids(exclude), None if candidates is None else checked_ids(candidates)
        asked = (k, exclude_history, exclude, candidates, explain, skip_unknown)
        lists = self.answer([Request(history, *asked) for history in histories])
        for row, found in enumerate(lists):
            if isinstance(found, ValueError):
                raise ValueError(f"history {row}: {found}" if len(lists) > 1 else str(found)) from found
        return lists

    def answer(self, requests: Sequence[Request]) -> list[list[Recommendation] | ValueError]:
        """The lists of requests that may differ in all, which are computed together.

        A request at fault gets its ValueError in place of a list, and the others their lists.
        """
        view, new = self.view(), Texts()
        answers: list[Any] = [[] for _ in requests]
        read, barred = {}, Barred(view.candidates, partial(self._number, view))
        for row, request in enumerate(requests):
            try:
                check_count(request.k, "k")
                numbers = self._read(view, request.history, new, request.skip_unknown)
                barred.mask(request.exclude, request.candidates)
                if numbers:
                    read[row] = numbers
            except ValueError as error:
                answers[row] = error
        if read:
            asked = [requests[row] for row in read]
            encoded = new.encoded(view.bundle)
            score = partial(self._scores, view, new=encoded)
            found = self._lists(view, asked, Sequences.of(*read.values()), barred, encoded, score)
            for row, one in zip(read, found, strict=True):
                answers[row] = one
        return answers

    def has_item(self, item: Any) -> bool:
        """Whether the catalog has an item with this id; False for what is no id."""
        try:
            return self._look_up(self.view(), check_id(item)) is not None
        except ValueError:
            return False

    def find(self, word: str) -> list[Item]:
        """The item with this id, or else some with this title, without regard to case; none for none."""
        store = self.view().bundle.store
        number = store.number(clean(word))
        return store.items(store.titled(word) if number is None else [number])

    def suggest(self, word: str) -> list[str]:
        """Up to three ids or titles that begin like a word and are much like it, or titles that hold it."""
        store, word = self.view().bundle.store, clean(word)
        known = {folded(name): name for name in store.beginning_like(word)}
        near = [known[name] for name in difflib.get_close_matches(folded(word), list(known), n=3, cutoff=0.7)]
        held = [item.title for item in store.items(store.search(word, 3))]  # which the word is a part of
        return list(dict.fromkeys([*near, *held]))[:3]

    def snapshot(self) -> "Recommender":
        """A recommender that keeps to the bundle as it is now, whatever becomes of it."""
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
        (place,) = self._read(view, [item], new)
        query = self._rows(view, np.array([place]), new.encoded(view.bundle))[0]
        if not query.any():
            raise ValueError(f"item {shown(item)} has no text")
        scores = torch.from_numpy(view.domain.rows @ query)
        scores[~torch.from_numpy(view.candidates)] = -torch.inf
        if place < view.change.numbers:
            scores[place] = -torch.inf
        places = best(scores, k)
        return list(zip(view.bundle.store.items(places.tolist()), scores[places].tolist(), strict=True))

    def explain(self, history: Sequence[Entry], item: ItemId) -> tuple[Reason, ...]:
        """Which items of a history speak for an item, best first; ValueError as `recommend`."""
        view, new = self.view(), Texts()
        numbers = np.array(self._read(view, history, new))
        return self._reasons(view, numbers, self._number(view, item), new.encoded(view.bundle))

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
                view = self._view = self._make_view()
        return view

    def _make_view(self) -> View:
        bundle, change = self.bundle, self.bundle.store.state()
        numbers = change.numbers
        rows = bundle.store.array("texts", numbers)
        candidates = np.ones(numbers, dtype=bool)
        candidates[change.barred] = False
        log, ease = (None, None) if bundle.log is None else grow_log(*bundle.log, numbers, change.moved)
        domain, catalog, blender, search, codes = Domain(rows, log, ease), None, None, None, None
        if bundle.model is not None:
            read = bundle.store.array("embeddings", numbers) if "embeddings" in bundle.store.widths else rows
            catalog = Catalog(bundle.store.array("codes", numbers), read, source=str(bundle.folder))
            if bundle.model.config.predicts == ITEMS:
                search = bundle.model.item_search(Items(catalog).to(bundle.device), 1)
            elif bundle.blend is None:
                codes = torch.from_numpy(catalog.codes).to(bundle.device)  # on a CPU without a copy
        if bundle.blend is not None:
            read = catalog.codes if bundle.reads_codes else None
            blender = Blender(bundle.blend, domain, np.arange(numbers), read)
        return View(bundle, change, domain, blender, catalog, search, codes, candidates, {})

    def _read(self, view: View, history: Sequence[Entry], new: "Texts", skip_unknown: bool = False) -> list[int]:
        """The numbers of the items of a history; texts of what is new among them go to `new`."""
        history = history.tolist() if isinstance(history, np.ndarray) else history
        if not isinstance(history, (list, tuple)):
            raise ValueError(f"a history is a list of items, found {shown(history)}")
        if not history:
            raise ValueError("the history is empty: a recommendation needs one item or more")
        numbers, texts = [], []
        for entry in history:
            if isinstance(entry, dict):
                numbers.append(view.change.numbers + len(new.texts) + len(texts))
                texts.append(view.bundle.ordered(entry))
            else:
                number = self._look_up(view, check_id(entry))
                if number is None and not skip_unknown:
                    raise ValueError(f"no item has the id {shown(entry)}")
                numbers += [] if number is None else [number]
        if texts:
            try:
                view.bundle.encoder()
            except InputError as error:
                raise ValueError(str(error)) from error
            new.texts += texts
        return numbers

    def _number(self, view: View, item: Any) -> int:
        number = self._look_up(view, check_id(item))
        if number is None:
            raise ValueError(f"no item has the id {shown(item)}")
        return number

    def _look_up(self, view: View, item: ItemId) -> int | None:
        """The number of an id, which is kept for the next time."""
        number = view.numbers.get(item)
        if number is None:
            number = view.bundle.store.number(item, view.change)
            if number is not None and len(view.numbers) < KEPT_IDS:
                view.numbers[item] = number
        return number

    def _scores(self, view: View, histories: Sequences, new: New) -> Tensor:
        """The scores of all numbers after B histories, (B, N) float32."""
        said = self._said(view, histories, new) if view.bundle.reads_model else None
        return self._combined(view, histories, new, said)

    @torch.no_grad()
    def _said(self, view: View, histories: Sequences, new: New) -> Tensor:
        """What the model's head says of the next item of B histories, as `RecGPT.next_item`."""
        model = view.bundle.model
        return model.next_item(self._batch(view, histories.last(model.config.window - 1), new))

    def _batch(self, view: View, read: Sequences, new: New) -> SeqBatch:
        """Histories of numbers as the model reads them; only what is read is looked up."""
        bundle = view.bundle
        numbers, local = np.unique(read.items, return_inverse=True)
        known = numbers[numbers < view.change.numbers]
        prepared = bundle.prepared(new.embeddings[numbers[len(known) :] - view.change.numbers])
        codes = np.concatenate([view.catalog.codes[known], bundle.tokenizer.tokenize(prepared)])
        embeddings = np.concatenate([view.catalog.embed(known), prepared])
        return make_batch(Sequences(None, local, read.offsets), Catalog(codes, embeddings)).to(bundle.device)

    @torch.no_grad()
    def _combined(self, view: View, histories: Sequences, new: New, said: Tensor | None) -> Tensor:
        """The scores (B, N) by what the model's head says, if it is read, and by the blend, if there is one."""
        if said is None:
            scores = None
        elif not torch.isfinite(said).all():
            raise ValueError("what the model says is not finite: its weights are damaged")
        elif view.bundle.model.config.predicts == ITEMS:
            scores = view.search.scores(said).cpu()
        elif view.blender is not None:
            scores = said.log_softmax(-1).cpu()
        else:
            scores = code_scores(view.codes, said.log_softmax(-1)).cpu()
        if view.blender is None:
            return scores
        whitened = view.bundle.whitening(new.embeddings) if len(new.titles) else None
        return view.blender.scores(histories, scores, whitened)

    def _lists(
        self,
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
                    left.masked_fill_(barred.mask(requests[row].exclude, requests[row].candidates), -torch.inf)
                    if requests[row].exclude_history:
                        left[[number for number in own if number < known]] = -torch.inf
                    places = best(left, requests[row].k)
                    chances = (left[places] - left.logsumexp(0)).exp()  # among what may be recommended
                    found[row] = self._listed(view, requests[row], own, places, chances, new)
        return found

    def _listed(
        self, view: View, request: Request, history: list[int], places: Tensor, chances: Tensor, new: New
    ) -> list[Recommendation]:
        """The recommendations of the numbers `places` (k,), with their probabilities (k,)."""
        own, numbers = np.array(history), places.tolist()
        why = [self._reasons(view, own, number, new) if request.explain else () for number in numbers]
        items = zip(view.bundle.store.items(numbers), chances.tolist(), why, strict=True)
        return [Recommendation(item.id, item.title, chance, reasons) for item, chance, reasons in items]

    def _reasons(self, view: View, history: np.ndarray, number: int, new: New) -> tuple[Reason, ...]:
        """The items of a history that speak for an item most: by likeness of texts and by what followed in the log."""
        history = np.unique(history)
        similar = self._rows(view, history, new) @ view.domain.rows[number]
        followed, known = np.zeros(len(history)), history < view.change.numbers
        if view.domain.log is not None:
            followed[known] = view.domain.log.transitions[history[known]][:, [number]].toarray()[:, 0]
        strength = np.maximum(similar, 0) + np.sqrt(followed)
        chosen = [place for place in np.argsort(-strength, kind="stable")[:REASONS].tolist() if strength[place] > 0]
        numbers = view.change.numbers
        named = [
            view.bundle.store.items([item])[0][:2] if item < numbers else (None, new.titles[item - numbers])
            for item in history[chosen].tolist()
        ]
        return tuple(
            Reason(*name, float(similar[place]), float(followed[place]))
            for name, place in zip(named, chosen, strict=True)
        )

    def _rows(self, view: View, numbers: np.ndarray, new: New) -> np.ndarray:
        """Whitened rows (n, E) of numbers (n,), of which those of N or more are new items."""
        known = numbers < view.change.numbers
        rows = np.zeros((len(numbers), view.domain.rows.shape[1]), dtype=np.float32)
        rows[known] = view.domain.rows[numbers[known]]
        rows[~known] = view.bundle.whitening(new.embeddings[numbers[~known] - view.change.numbers])
        return rows


def best(scores: Tensor, k: int) -> Tensor:
    """Places (k,) of the best of scores (N,), best first, of equal ones the first; fewer where others are -inf."""
    k = min(k, len(scores))
    least = scores.topk(k).values[-1]
    places = (scores >= least).nonzero()[:, 0]  # more than k, where several are as good as the last
    places = places[scores[places].sort(descending=True, stable=True).indices[:k]]
    return places[scores[places] > -torch.inf]
