"""Recommendations from a bundle: histories in, items with probabilities and reasons out.

    recommender = Recommender.open("my_bundle")
    recommender.recommend([["B0012", "B0831"]], k=5)

Letters of the shapes as in utils/data.py: B histories, N numbers of the bundle's items, E embedding width.
"""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import Items
from serving.bundles import Bundle, checked_ids
from serving.log import grow_log
from serving.store import Change, Item, ItemId, check_id
from utils.blend import Blender, Domain
from utils.checkpoint import ITEMS
from utils.data import Catalog, Sequences, make_batch
from utils.errors import shown
from utils.names import title
from utils.search import ItemSearch, best_scored, code_table, slot_rows
from utils.util import check_count

SCORES = 1 << 24  # that are held at once, which bounds memory
KEPT_IDS = 1 << 20  # whose numbers are kept in memory
REASONS = 2  # items of the history that a recommendation is explained with, at most

Text = dict[str, Any]  # fields of an item that the catalog does not have
Entry = ItemId | Text  # of a history


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


class New(NamedTuple):
    """X items of histories that the catalog does not have; they stand as numbers N, N + 1, …"""

    embeddings: np.ndarray  # (X, E) float32, raw
    titles: list[str]


class View(NamedTuple):
    """A bundle as it is at one time; a call keeps to one, whatever becomes of the bundle meanwhile."""

    bundle: Bundle
    change: Change
    domain: Domain
    blender: Blender | None
    catalog: Catalog | None  # what the model reads
    search: ItemSearch | None  # of a model that predicts items
    codes: Tensor | None  # (N, K) int32, their places in `code_table`, of one that predicts codes
    candidates: np.ndarray  # (N,) bool
    numbers: dict[ItemId, int]  # of ids that were looked up


class Recommender:
    """Recommends from a bundle, which may change meanwhile: every call sees it as it is then.

    Safe to use from several threads. A bundle that was made anew in the same place is opened anew, too.
    """

    def __init__(self, bundle: Bundle):
        self.bundle, self._view, self._changing = bundle, None, threading.Lock()

    @classmethod
    def open(cls, folder: str | Path, device: str = "cpu") -> "Recommender":
        """Open a bundle; InputError if it is damaged."""
        return cls(Bundle.open(Path(folder), device))

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

        Raises:
            ValueError: an empty history, an id that no item has, or nothing that may be recommended.
        """
        check_count(k, "k")
        view = self.view()
        lists, new = self._read(view, histories)
        if not lists:
            return []
        allowed, k = self._allowed(view, exclude, candidates), min(k, view.change.numbers)
        found, at_once = [], max(1, SCORES // view.change.numbers)
        for start in range(0, len(lists), at_once):
            part = Sequences.of(*lists[start : start + at_once])
            scores = self._scores(view, part, new)
            scores[:, ~allowed] = -torch.inf
            if exclude_history:
                own = part.below(view.change.numbers)
                scores[np.repeat(np.arange(len(own)), own.lengths), own.items] = -torch.inf
            found += self._listed(view, scores, part, k, new if explain else None)
        return found

    def has_item(self, item: Any) -> bool:
        """Whether the catalog has an item with this id; False for what is no id."""
        try:
            return self._look_up(self.view(), check_id(item)) is not None
        except ValueError:
            return False

    def find(self, word: str) -> Item | None:
        """The item with this id, or else with this title, without regard to case; None for none."""
        store = self.view().bundle.store
        number = store.number(word) if word.strip() else None
        number = store.titled(word) if number is None else number
        return None if number is None else store.items([number])[0]

    def similar_items(self, item: Entry, k: int = 10) -> list[tuple[Item, float]]:
        """The k items whose texts are nearest to one's, with their cosines, best first.

        Raises:
            ValueError: an id that no item has, or an item without text.
        """
        check_count(k, "k")
        view = self.view()
        ((place,),), new = self._read(view, [[item]])
        k = min(k, view.change.numbers)
        query = self._rows(view, np.array([place]), new)[0]
        if not query.any():
            raise ValueError(f"item {shown(item)} has no text")
        scores = torch.from_numpy(view.domain.rows @ query)[None]
        scores[:, ~view.candidates] = -torch.inf
        if place < view.change.numbers:
            scores[0, place] = -torch.inf
        top = best_scored(scores, torch.arange(view.change.numbers), k)
        kept = top.items[0] >= 0
        items = view.bundle.store.items(top.items[0][kept].tolist())
        return list(zip(items, top.scores[0][kept].tolist(), strict=True))

    def explain(self, history: Sequence[Entry], item: ItemId) -> tuple[Reason, ...]:
        """Which items of a history speak for an item, best first; ValueError as `recommend`."""
        view = self.view()
        (numbers,), new = self._read(view, [history])
        return self._reasons(view, np.array(numbers), self._number(view, item), new)

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
        if view is None or not view.bundle.is_current() or view.change.generation != view.bundle.store.generation():
            with self._changing:
                if not self.bundle.is_current():
                    self.bundle = Bundle.open(self.bundle.path.parent, self.bundle.device)
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
            read = rows if bundle.tokenizer.whitens else bundle.store.array("embeddings", numbers)
            catalog = Catalog(bundle.store.array("codes", numbers), read, source=str(bundle.folder))
            if bundle.model.config.predicts == ITEMS:
                search = bundle.model.item_search(Items(catalog).to(bundle.device), 1)
            elif bundle.blend is None:
                codes = torch.from_numpy(catalog.codes).int().to(bundle.device) + slot_rows(bundle.device)
        if bundle.blend is not None:
            read = catalog.codes if bundle.reads_codes else None
            blender = Blender(bundle.blend, domain, np.arange(numbers), read)
        return View(bundle, change, domain, blender, catalog, search, codes, candidates, {})

    def _read(self, view: View, histories: Sequence[Sequence[Entry]]) -> tuple[list[list[int]], New]:
        """The numbers of the items of histories, and what is new among them."""
        if isinstance(histories, (str, bytes, dict)) or not isinstance(histories, Iterable):
            raise ValueError(f"histories are a list of lists, found {shown(histories)}")
        texts, lists = [], []
        for row, history in enumerate(histories):
            history = history.tolist() if isinstance(history, np.ndarray) else history
            if not isinstance(history, (list, tuple)):
                raise ValueError(f"history {row} is {shown(history)}, expected a list of items")
            if not history:
                raise ValueError(f"history {row} is empty: a recommendation needs one item or more")
            numbers = []
            for entry in history:
                if isinstance(entry, dict):
                    numbers.append(view.change.numbers + len(texts))
                    texts.append(entry)
                else:
                    numbers.append(self._number(view, entry))
            lists.append(numbers)
        texts = [view.bundle.ordered(fields) for fields in texts]
        return lists, New(view.bundle.encode(texts), [title(fields) for fields in texts])

    def _number(self, view: View, item: Any) -> int:
        number = self._look_up(view, check_id(item))
        if number is None or number >= view.change.numbers:  # the latter of an item that was added this very moment
            raise ValueError(f"no item has the id {shown(item)}")
        return number

    def _look_up(self, view: View, item: ItemId) -> int | None:
        """The number of an id, which is kept for the next time."""
        number = view.numbers.get(item)
        if number is None:
            number = view.bundle.store.number(item)
            if number is not None and len(view.numbers) < KEPT_IDS:
                view.numbers[item] = number
        return number

    def _allowed(self, view: View, exclude: Iterable[ItemId], candidates: Iterable[ItemId] | None) -> np.ndarray:
        """Which numbers may be recommended, (N,) bool; ValueError if none may."""
        allowed = view.candidates.copy()
        if candidates is not None:
            named = np.zeros_like(allowed)
            named[[self._number(view, item) for item in checked_ids(candidates)]] = True
            allowed &= named
        allowed[[self._number(view, item) for item in checked_ids(exclude)]] = False
        if not allowed.any():
            raise ValueError("there is nothing that may be recommended: no candidate is left")
        return allowed

    def _scores(self, view: View, histories: Sequences, new: New) -> Tensor:
        """The scores of all numbers after B histories, (B, N) float32."""
        bundle, said = view.bundle, None
        if bundle.reads_model:
            said = self._model_scores(view, histories, new)
            if view.blender is None:
                return said
        whitened = bundle.whitening(new.embeddings) if len(new.titles) else None
        return view.blender.scores(histories, said, whitened)

    @torch.no_grad()
    def _model_scores(self, view: View, histories: Sequences, new: New) -> Tensor:
        """What the model says of all numbers, or, for a blend, of their codes."""
        bundle, model = view.bundle, view.bundle.model
        device, read = bundle.device, histories.last(model.config.window - 1)
        numbers, local = np.unique(read.items, return_inverse=True)  # only what is read is looked up
        known = numbers[numbers < view.change.numbers]
        prepared = bundle.prepared(new.embeddings[numbers[len(known) :] - view.change.numbers])
        codes = np.concatenate([view.catalog.codes[known], bundle.tokenizer.tokenize(prepared)])
        embeddings = np.concatenate([view.catalog.embed(known), prepared])
        batch = make_batch(Sequences(None, local, read.offsets), Catalog(codes, embeddings)).to(device)
        said = model.next_item(batch)
        if not torch.isfinite(said).all():
            raise ValueError("what the model says is not finite: its weights are damaged")
        if model.config.predicts == ITEMS:
            return view.search.scores(said).cpu()
        log_probs = said.log_softmax(-1)
        if view.blender is not None:
            return log_probs.cpu()
        found = F.embedding_bag(view.codes, code_table(log_probs), mode="sum")  # (N, B)
        return found[:, : len(said)].T.cpu()

    def _listed(
        self, view: View, scores: Tensor, histories: Sequences, k: int, new: New | None
    ) -> list[list[Recommendation]]:
        """The lists of B users by scores (B, N), with reasons where new items, or that there are none, are given."""
        probabilities = scores.double().softmax(1)  # among what may be recommended
        top = best_scored(scores, torch.arange(view.change.numbers), k)
        found = []
        for row, history in enumerate(histories.lists()):
            places = [item for item in top.items[row].tolist() if item >= 0]
            items = view.bundle.store.items(places)
            why = [() if new is None else self._reasons(view, np.array(history), place, new) for place in places]
            chances = probabilities[row, places].tolist()
            found.append([Recommendation(*item[:2], *rest) for item, *rest in zip(items, chances, why, strict=True)])
        return found

    def _reasons(self, view: View, history: np.ndarray, number: int, new: New) -> tuple[Reason, ...]:
        """The items of a history that speak for an item most: by likeness of texts and by what followed in the log."""
        history = np.unique(history)
        similar = self._rows(view, history, new) @ view.domain.rows[number]
        followed, known = np.zeros(len(history)), history < view.change.numbers
        if view.domain.log is not None:
            followed[known] = view.domain.log.transitions[history[known]][:, [number]].toarray()[:, 0]
        strength = np.maximum(similar, 0) + np.sqrt(followed)
        best = [place for place in np.argsort(-strength, kind="stable")[:REASONS].tolist() if strength[place] > 0]
        numbers = view.change.numbers
        named = [
            view.bundle.store.items([item])[0][:2] if item < numbers else (None, new.titles[item - numbers])
            for item in history[best].tolist()
        ]
        return tuple(
            Reason(*name, float(similar[place]), float(followed[place]))
            for name, place in zip(named, best, strict=True)
        )

    def _rows(self, view: View, numbers: np.ndarray, new: New) -> np.ndarray:
        """Whitened rows (n, E) of numbers (n,), of which those of N or more are new items."""
        known = numbers < view.change.numbers
        rows = np.zeros((len(numbers), view.domain.rows.shape[1]), dtype=np.float32)
        rows[known] = view.domain.rows[numbers[known]]
        rows[~known] = view.bundle.whitening(new.embeddings[numbers[~known] - view.change.numbers])
        return rows
