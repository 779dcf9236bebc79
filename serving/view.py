"""A bundle as it is at one time: what its items are called, and what its ranking says of all of them.

Letters of the shapes as in utils/data.py: B histories, N numbers of the bundle's items, E embedding width.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_processing.parts.missing import has_text
from model import Items
from serving.asked import Entry, New, Text, Texts
from serving.bundles import Bundle
from serving.log import grow_log
from serving.scoring import code_scores
from serving.store import REMEDY, ItemId, check_id
from utils.blend import Blender, Domain
from utils.checkpoint import ITEMS
from utils.data import Catalog, SeqBatch, Sequences, make_batch
from utils.errors import InputError, shown
from utils.names import TITLES

if TYPE_CHECKING:
    from serving.filters import Matching

KEPT_IDS = 1 << 20  # whose numbers are kept in memory
KEPT_FILTERS, KEPT_BYTES = 256, 1 << 26  # whose findings are kept, a byte for each item, and bytes of all
REASONS = 2  # items of the history that a recommendation is explained with, at most


class Reason(NamedTuple):
    """An item of the history that speaks for a recommendation."""

    id: ItemId | None  # None for an item that the catalog does not have
    title: str
    similarity: float  # cosine of the texts, -1 to 1
    followed: float  # the recommended item's share of all that came soon after it, or before, in the log, 0 to 1


class View:
    """A bundle as it is at one time; a call keeps to one, whatever becomes of the bundle meanwhile.

    Safe to use from several threads. Items go by their numbers, and new ones, which the catalog does not have, by
    N, N + 1, … in the order of `New`.
    """

    def __init__(self, bundle: Bundle, earlier: "View | None" = None):
        """Of a bundle as it is now; what an `earlier` view has checked is not checked again. InputError for damage."""
        self.bundle, self.change = bundle, bundle.store.state()
        numbers = self.change.numbers  # N
        rows = bundle.store.array("texts", numbers)
        log, ease = (None, None) if bundle.log is None else grow_log(*bundle.log, numbers, self.change.moved)
        self.domain = Domain(rows, log, ease)
        self.catalog, self.blender = None, None  # what the model reads; the blend
        self.search, self.codes = None, None  # of a model that predicts items, or codes
        if bundle.model is not None:
            codes = bundle.store.array("codes", numbers)
            check_codes(codes, earlier.change.numbers if earlier and earlier.bundle is bundle else 0, bundle)
            read = bundle.store.array("embeddings", numbers) if "embeddings" in bundle.store.widths else rows
            self.catalog = Catalog(codes, read, source=str(bundle.folder), codebook=bundle.model.config.codebook)
            if bundle.model.config.predicts == ITEMS:
                self.search = bundle.model.item_search(Items(self.catalog).to(bundle.device), 1)
            elif bundle.blend is None:
                self.codes = torch.from_numpy(codes).to(bundle.device)  # on a CPU without a copy
        if bundle.blend is not None:
            read = self.catalog.codes if bundle.reads_codes else None
            self.blender = Blender(bundle.blend, self.domain, np.arange(numbers), read)
        self._numbers: dict[ItemId, int] = {}
        self._matching: dict[tuple[str, ...], Matching] = {}

    # Items

    def look_up(self, item: ItemId) -> int | None:
        """The number of an id, which is kept for the next time; None for one that no item has."""
        number = self._numbers.get(item)
        if number is None:
            number = self.bundle.store.number(item, self.change)
            if number is not None and len(self._numbers) < KEPT_IDS:
                self._numbers[item] = number
        return number

    def number(self, item: Any) -> int:
        """The number of the item with an id; ValueError for what is no id, or that of no item."""
        number = self.look_up(check_id(item))
        if number is None:
            raise ValueError(f"no item has the id {shown(item)}")
        return number

    def read(self, history: Sequence[Entry], new: Texts, skip_unknown: bool = False) -> list[int]:
        """The numbers of the items of a history; texts of what is new among them go to `new`.

        ValueError for an empty history, an id that no item has, or a text that cannot be encoded.
        """
        history = history.tolist() if isinstance(history, np.ndarray) else history
        if not isinstance(history, (list, tuple)):
            raise ValueError(f"a history is a list of items, found {shown(history)}")
        if not history:
            raise ValueError("the history is empty: a recommendation needs one item or more")
        numbers, texts = [], []
        for entry in history:
            if not isinstance(entry, dict):
                number = self.look_up(check_id(entry))
                if number is None and not skip_unknown:
                    hint = f'; as a title it is given as {{"{self.bundle.title_field}": …}}'
                    is_title = isinstance(entry, str) and self.bundle.store.titled(entry, 1, self.change)
                    raise ValueError(f"no item has the id {shown(entry)}{hint if is_title else ''}")
                numbers += [] if number is None else [number]
                continue
            text = self.bundle.ordered(entry)
            number = self._titled(text)
            if number is None:
                if not has_text([text.get(name) for name in self.bundle.fields]):
                    raise ValueError(f"an item of the history has no text: {shown(entry)}")
                number = self.change.numbers + len(new.texts) + len(texts)
                texts.append(text)
            numbers.append(number)
        if texts:
            try:
                self.bundle.encoder()
            except InputError as error:
                raise ValueError(str(error)) from error
            new.texts += texts
        return numbers

    def _titled(self, fields: Text) -> int | None:
        """The number of the item that is meant by a title alone; None for none."""
        ((name, value), *others) = fields.items() or (("", None),)
        if others or name not in TITLES or not isinstance(value, str):
            return None
        found = self.bundle.store.titled(value, 1, self.change)
        return found[0] if found else None

    def matching(self, conditions: Sequence[str]) -> "Matching":
        """Which numbers may be recommended and meet all conditions, kept for the next time.

        ValueError for a condition that cannot be used, or that no item meets.
        """
        found = self._matching.get(tuple(conditions))
        if found is None:
            from serving.filters import matching  # heavy, by DuckDB and pandas, and only needed here

            found = matching(self.bundle, self.change, conditions)
            found.numbers[self.change.barred] = False
            if len(self._matching) >= min(KEPT_FILTERS, max(1, KEPT_BYTES // self.change.numbers)):
                self._matching.clear()
            self._matching[tuple(conditions)] = found
        return found

    def rows(self, numbers: np.ndarray, new: New) -> np.ndarray:
        """Rows (n, E) float32 by which texts are compared, of numbers (n,), of which those of N or more are new."""
        known = numbers < self.change.numbers
        rows = np.zeros((len(numbers), self.domain.rows.shape[1]), dtype=np.float32)
        rows[known] = self.domain.rows[numbers[known]]
        rows[~known] = self.bundle.whitening(new.embeddings[numbers[~known] - self.change.numbers])
        return rows

    # Scores

    def scores(self, histories: Sequences, new: New) -> Tensor:
        """The scores of all numbers after B histories, (B, N) float32; InputError if something is damaged."""
        return self.combined(histories, new, self._said(histories, new) if self.bundle.reads_model else None)

    @torch.no_grad()
    def _said(self, histories: Sequences, new: New) -> Tensor:
        """What the model's head says of the next item of B histories, as `RecGPT.next_item`."""
        model = self.bundle.model
        return model.next_item(self.batch(histories.last(model.config.window - 1), new))

    def batch(self, read: Sequences, new: New) -> SeqBatch:
        """Histories of numbers as the model reads them; only what is read is looked up."""
        bundle = self.bundle
        numbers, local = np.unique(read.items, return_inverse=True)
        known = numbers[numbers < self.change.numbers]
        with damage_of(bundle):
            prepared = bundle.prepared(new.embeddings[numbers[len(known) :] - self.change.numbers])
            codes = np.concatenate([self.catalog.codes[known], bundle.tokenizer.tokenize(prepared)])
            embeddings = np.concatenate([self.catalog.embed(known), prepared])
            catalog = Catalog(codes, embeddings, codebook=self.catalog.codebook)
            return make_batch(Sequences(None, local, read.offsets), catalog).to(bundle.device)

    @torch.no_grad()
    def combined(self, histories: Sequences, new: New, said: Tensor | None) -> Tensor:
        """The scores (B, N) by what the model's head says, if it is read, and by the blend, if there is one."""
        if said is None:
            scores = None
        elif not torch.isfinite(said).all():
            raise InputError(f"{self.bundle.folder}: what the model says is not finite, so it is damaged. {REMEDY}")
        elif self.search is not None:
            scores = self.search.scores(said).cpu()
        elif self.blender is not None:
            scores = said.log_softmax(-1).cpu()
        else:
            scores = code_scores(self.codes, said.log_softmax(-1)).cpu()
        if self.blender is not None:
            whitened = self.bundle.whitening(new.embeddings) if len(new.titles) else None
            with damage_of(self.bundle):
                scores = self.blender.scores(histories, scores, whitened)
        if scores.isnan().any():
            raise InputError(f"{self.bundle.folder}: scores are no numbers, so its arrays are damaged. {REMEDY}")
        return scores

    def nearest(self, query: np.ndarray) -> Tensor:
        """The cosines (N,) of the texts of all numbers to a row (E,); InputError if something is damaged."""
        cosines = torch.from_numpy(self.domain.rows @ query)
        if cosines.isnan().any():
            raise InputError(f"{self.bundle.folder}: embeddings of items are damaged. {REMEDY}")
        return cosines

    # Reasons

    def reasons(self, history: np.ndarray, number: int, new: New) -> tuple[Reason, ...]:
        """The items of a history that speak for an item most: by likeness of texts and by what followed in the log."""
        history, numbers = np.unique(history), self.change.numbers
        similar = self.rows(history, new) @ self.domain.rows[number]
        followed, known = np.zeros(len(history)), history < numbers
        if self.domain.log is not None:
            followed[known] = self.domain.log.transitions[history[known]][:, [number]].toarray()[:, 0]
        strength = np.maximum(similar, 0) + np.sqrt(followed)
        chosen = [place for place in np.argsort(-strength, kind="stable")[:REASONS].tolist() if strength[place] > 0]
        named = [
            self.bundle.store.items([item])[0][:2] if item < numbers else (None, new.titles[item - numbers])
            for item in history[chosen].tolist()
        ]
        return tuple(
            Reason(*name, float(similar[place]), float(followed[place]))
            for name, place in zip(named, chosen, strict=True)
        )


@contextlib.contextmanager
def damage_of(bundle: Bundle) -> Iterator[None]:
    """Let an InputError about embeddings name the bundle and its remedy, in place of those of a data set."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{bundle.folder}: embeddings of items are damaged. {REMEDY}") from error


def check_codes(codes: np.ndarray, checked: int, bundle: Bundle) -> None:
    """InputError for codes (N, K) int16 that are none, of numbers of which so many were `checked` before."""
    new = codes[checked:]
    if len(new) and not 0 <= new.min() <= new.max() < bundle.model.config.codebook.size:
        raise InputError(f"{bundle.folder / 'codes.bin'} has codes that are none: it is damaged. {REMEDY}")
