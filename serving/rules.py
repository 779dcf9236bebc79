"""What simple rules would recommend, and what is known of one item: for a look beside the recommendations."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_processing.parts.columns import clean
from serving.asked import Entry, Texts
from serving.recommender import Recommender
from serving.store import Item, ItemId
from serving.view import View
from utils.util import check_count

Scored = list[tuple[Item, float]]  # items with what speaks for each, best first


class Details(NamedTuple):
    """What is known of an item."""

    id: ItemId
    title: str
    fields: dict[str, Any]  # its text
    codes: list[int] | None  # None where the bundle has no model
    popularity: float | None  # its share of the log's interactions; None without a log, or of an item added later


def describe(recommender: Recommender, item: ItemId) -> Details:
    """What is known of an item; ValueError for an id that none has."""
    view = recommender.view()
    number = view.number(item)
    codes = None if view.catalog is None else view.catalog.codes[number].tolist()
    logged = view.bundle.log is not None and view.change.moved.get(number, number) < len(view.bundle.log[0].share)
    share = float(view.domain.log.share[number]) if logged else None
    return Details(*view.bundle.store.items([number])[0], codes, share)


def search(recommender: Recommender, words: str, limit: int) -> list[Item]:
    """At most `limit` items: the one that has some words as its id, then those whose titles begin with or hold them."""
    store, words = recommender.view().bundle.store, clean(words)
    by_id = store.number(words) if words else None
    numbers = ([] if by_id is None else [by_id]) + store.search(words, limit)
    return store.items(list(dict.fromkeys(numbers))[:limit])


def rule_lists(recommender: Recommender, history: Sequence[Entry], k: int) -> dict[str, Scored | None]:
    """The k best items after a history by each rule; None of a rule that the bundle has no data for.

    nearest text: cosine to the text of the last item. popularity: share of the log's interactions. Both leave out what
    is in the history, of which repeat consists: its items, the last first, with how often they are there.

    Raises:
        ValueError: an empty history, an id that no item has, or a last item without text.
    """
    check_count(k, "k")
    if not history:
        raise ValueError("the history is empty: a rule needs one item or more")
    recommender = recommender.snapshot()
    view = recommender.view()
    own = [number for number in view.read(history, Texts()) if number < view.change.numbers]
    ids = {item.id for item in view.bundle.store.items(list(set(own)))}
    near = recommender.similar_items(history[-1], k + len(ids))
    return {
        "nearest text": [one for one in near if one[0].id not in ids][:k],
        "popularity": None if view.domain.log is None else popular(view, own, k),
        "repeat": repeated(view, own, k),
    }


def popular(view: View, own: list[int], k: int) -> Scored:
    """The k items with the highest shares of the log among those that may be recommended and are not one's own."""
    share = view.domain.log.share.copy()
    share[view.change.barred], share[own] = -1.0, -1.0
    best = np.argsort(-share, kind="stable")[:k]
    best = best[share[best] >= 0]
    return list(zip(view.bundle.store.items(best.tolist()), share[best].tolist(), strict=True))


def repeated(view: View, own: list[int], k: int) -> Scored:
    """The distinct items of a history that may be recommended, the last first, at most k."""
    times, barred = Counter(reversed(own)), view.change.mask()
    numbers = [number for number in times if not barred[number]][:k]
    items = view.bundle.store.items(numbers)
    return [(item, float(times[number])) for number, item in zip(numbers, items, strict=True)]
