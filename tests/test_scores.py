"""Scores without a network, each against a few lines that do the same item by item; ranks and lists; what they know."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from predict import make_search
from tests.conftest import dump
from utils import compare, scores
from utils.data import Sequences
from utils.datasets import load_test
from utils.errors import InputError
from utils.fsq import PUBLISHED
from utils.Trie import Trie
from utils.whitening import unit_rows, whiten

ITEMS = 7
item_lists = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=16), min_size=1, max_size=8)
EVERY = np.ones(ITEMS, dtype=bool)


def embeddings(items: int = ITEMS, seed: int = 0) -> np.ndarray:
    """Rows of which the second equals the first, and the last is of an item without text."""
    rows = np.random.default_rng(seed).standard_normal((items, 32)).astype(np.float32)
    rows[1 % items] = rows[0]
    rows[-1] = 0
    return rows


def unit(row: np.ndarray) -> np.ndarray:
    return row / max(np.linalg.norm(row), 1e-12)


def weights_of(items: list[int], decay: float = 0.7, reach: int = 12) -> np.ndarray:
    """Weights of a history's items, one by one."""
    found = np.zeros(ITEMS)
    for lag, item in enumerate(items[::-1][:reach]):
        found[item] += decay**lag
    return found / max(found.sum(), 1e-12)


@given(item_lists)
@settings(deadline=None, max_examples=50)
def test_weights_and_statistics_are_those_of_a_loop(lists):
    histories = Sequences.of(*lists)
    for decay, reach in ((0.7, 12), (1.0, 1), (0.5, 3)):
        expected = [weights_of(items, decay, reach) for items in lists]
        assert np.allclose(scores.history_weights(histories, ITEMS, decay, reach).toarray(), expected, atol=1e-6)
    counts, pairs = np.full(ITEMS, 0.3), np.zeros((ITEMS, ITEMS))
    for items in lists:
        for place, item in enumerate(items):
            counts[item] += 1
            for distance, later in enumerate(items[place + 1 : place + 5]):
                if later != item:
                    pairs[item, later] += 0.6**distance
                    pairs[later, item] += 0.3 * 0.6**distance
    out, into = pairs.sum(1, keepdims=True), pairs.sum(0, keepdims=True)
    log = scores.LogStatistics.of(histories, ITEMS)
    assert np.allclose(log.share, counts / counts.sum())
    assert np.allclose(log.transitions.toarray(), pairs / np.maximum(out, 1e-12), atol=1e-6)
    assert np.allclose(log.cosine.toarray(), pairs / np.sqrt((out + 1) * (into + 1)), atol=1e-6)
    assert {part.dtype for part in log[:3]} == {np.dtype(np.float32)}


@given(item_lists, st.floats(1, 50))
@settings(deadline=None, max_examples=30)
def test_ease_is_ridge_regression_of_each_item_on_the_others(lists, l2):
    taken = np.array([np.isin(np.arange(ITEMS), items) for items in lists], dtype=float)
    found = scores.ease(Sequences.of(*lists), ITEMS, l2)
    for item in range(ITEMS):
        others = np.delete(taken, item, axis=1)
        expected = np.linalg.solve(others.T @ others + l2 * np.eye(ITEMS - 1), others.T @ taken[:, item])
        assert np.allclose(np.delete(found[:, item], item), expected, atol=1e-5) and found[item, item] == 0
    assert np.allclose(scores.ease_score(found)(Sequences.of(*lists)), taken @ found, atol=1e-6)


def test_ease_says_how_large_a_catalog_may_be():
    with pytest.raises(ValueError, match="may have 6000 items, found 6001"):
        scores.ease(Sequences.of([0]), scores.EASE_ITEMS + 1)


@pytest.mark.parametrize("power", [0.5, 0.25])
def test_whitening_makes_every_direction_as_wide(power):
    rows = embeddings(200) @ np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)
    found = whiten(rows, power)
    known = np.array([unit(row) for row in rows[:-1]], dtype=float)
    left, widths, right = np.linalg.svd(known - known.mean(0), full_matrices=False)
    variances = widths**2 / len(known)
    expected = left * widths * (variances + 1e-4 * variances.mean()) ** -power @ right
    assert np.allclose(found[:-1], [unit(row) for row in expected], atol=1e-4)
    assert not found[-1].any() and (found[0] == found[1]).all() and found.dtype == np.float32


@pytest.mark.parametrize("rows", [np.zeros((3, 32)), np.ones((3, 32)), np.ones((1, 32))])
def test_whitening_of_texts_that_do_not_differ(rows):
    found = whiten(rows)
    assert np.isfinite(found).all() and (found == found[0]).all()


def test_embeddings_that_are_not_finite_are_refused():
    for value in (np.nan, np.inf, 1e300):
        odd = embeddings(10).astype(np.float64)
        odd[3, 2] = value
        for score in (scores.nearest_text, whiten):
            with pytest.raises(InputError, match="row 3.*NaN or infinity"):
                score(odd)
    large = embeddings(10) * np.float32(1e30)
    assert np.allclose(unit_rows(large), unit_rows(embeddings(10)), atol=1e-6)


def every_score(log: Sequences, rows: np.ndarray) -> dict[str, scores.Scorer]:
    known = scores.Statistics.of(whiten(rows), log)
    texts = {"nearest text": scores.nearest_text(rows), "whitened text": scores.whitened_text(known.rows)}
    return {"repeat recent": scores.repeat_recent(len(rows)), **texts, **compare.log_scores(known)}


@given(item_lists, item_lists)
@settings(deadline=None, max_examples=30)
def test_scores_are_those_of_a_loop(lists, logged):
    rows, log = embeddings(), scores.LogStatistics.of(Sequences.of(*logged), ITEMS)
    raw, white = np.array([unit(row) for row in rows]), whiten(rows)
    found = {name: score(Sequences.of(*lists)) for name, score in every_score(Sequences.of(*logged), rows).items()}
    for user, items in enumerate(lists):
        recent = [len(items) - 1 - items[::-1].index(item) if item in items else -np.inf for item in range(ITEMS)]
        assert found["repeat recent"][user].tolist() == recent
        nearest = raw @ (raw[items[-1]] if items else np.zeros(32))
        nearest[items[-1:]] = -np.inf
        assert np.allclose(found["nearest text"][user], nearest, atol=1e-5)
        weights = weights_of(items)
        nearest = np.where(weights > 0, -np.inf, white @ unit(weights @ white))
        assert np.allclose(found["whitened text"][user], nearest, atol=1e-4)
        assert np.array_equal(found["popularity"][user], log.share)
        assert np.allclose(found["transitions"][user], weights @ log.transitions.toarray(), atol=1e-6)
        assert np.allclose(found["item cosine"][user], weights @ log.cosine.toarray(), atol=1e-6)
    for name in ("nearest text", "whitened text"):  # equal texts tie to the last bit
        kept = np.isfinite(found[name][:, :2]).all(axis=1)
        assert (found[name][kept, 0] == found[name][kept, 1]).all()


@given(st.integers(0, 1000), st.integers(1, 20), st.booleans(), st.sampled_from([1, 40, 1 << 26]))
@settings(deadline=None, max_examples=60)
def test_ranks_and_lists_are_those_of_a_full_sort(seed, k, exclude, at_once):
    """With ties, items that are no candidates or not recommended, and any number of users at once."""
    rng = np.random.default_rng(seed)
    items = int(rng.integers(1, 15))
    table = rng.integers(0, 4, (9, items)).astype(np.float32)
    table[rng.random(table.shape) < 0.2] = -np.inf
    lists = [rng.integers(0, items, rng.integers(1, 5)).tolist() for _ in table]
    candidates, targets = rng.random(items) < 0.8, rng.integers(0, items, 9)
    score = lambda histories: table[histories.users].copy()  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "SIMILARITIES", at_once)
        ranks = scores.rank_by(score, Sequences.of(*lists), targets, candidates, exclude)
        found = scores.lists_by(score, Sequences.of(*lists), candidates, k, exclude)
    for user, target in enumerate(targets):
        may = [i for i in range(items) if candidates[i] and table[user, i] > -np.inf]
        may = {item: table[user, item] for item in may if not (exclude and item in lists[user])}
        expected = sorted(may, key=lambda item: (-may[item], item))[:k]
        assert found[user].tolist() == expected + [-1] * (k - len(expected))
        assert ranks.tied[user] == (list(may.values()).count(may[target]) if target in may else 0)
        if target in may:
            assert ranks.above[user] == sum(score > may[target] for score in may.values())


def test_lists_and_ranks_refuse_odd_arguments():
    score, histories = scores.popular(np.ones(ITEMS)), Sequences.of([1])
    for k in (0, -1, 1.5):
        with pytest.raises(ValueError, match="k must be 1 or more"):
            scores.lists_by(score, histories, EVERY, k)
    for odd in ([-1], [ITEMS], [0.5]):
        with pytest.raises(ValueError, match="targets must"):
            scores.rank_by(score, histories, np.array(odd), EVERY)
    for odd in ([-1], [ITEMS]):
        with pytest.raises(ValueError, match="items must lie in"):
            scores.history_weights(Sequences.of(odd), ITEMS)


@given(item_lists, st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_lists_of_rules(lists, k):
    """Repeat recent lists the last distinct items; the most popular come by ascending id where counts are equal."""
    histories = Sequences.of(*lists)
    recent = [list(dict.fromkeys(items[::-1]))[:k] for items in lists]
    expected = [items + [-1] * (k - len(items)) for items in recent]
    assert scores.lists_by(scores.repeat_recent(ITEMS), histories, EVERY, k).tolist() == expected
    counts = np.array([0, 5, 3, 5, 0, 0, 0])
    expected = ([1, 3, 2, 0, 4, 5, 6] + [-1] * k)[:k]
    assert scores.lists_by(scores.popular(counts), histories, EVERY, k).tolist() == [expected] * len(lists)


def test_nearest_text_leaves_the_item_itself_out():
    rows = np.array([[1, 0], [0.9, 0.1], [0, 1], [0, 0], [1, 0]], dtype=np.float32)
    candidates = np.array([True, True, True, False, True])
    lists = scores.lists_by(scores.nearest_text(rows), Sequences.of([2, 0], [2], [0]), candidates, 4)
    assert lists.tolist() == [[4, 1, 2, -1], [1, 0, 4, -1], [4, 1, 2, -1]]


def test_an_empty_log_and_one_item():
    log = scores.LogStatistics.of(Sequences.of([], []), ITEMS)
    assert np.allclose(log.share, 1 / ITEMS) and log.transitions.nnz == log.cosine.nnz == 0
    ranks = scores.rank_by(scores.weighted_rows(log.transitions), Sequences.of([3]), np.array([2]), EVERY)
    assert (ranks.above.tolist(), ranks.tied.tolist()) == ([0], [ITEMS])  # all items tie at 0
    alone = every_score(Sequences.of([0, 0]), np.ones((1, 32)))
    for name, score in alone.items():
        ranks = scores.rank_by(score, Sequences.of([0]), np.array([0]), np.ones(1, dtype=bool))
        assert ranks.tied.tolist() == [0 if "text" in name else 1], name


def test_statistics_leave_the_log_as_it_was():
    log = Sequences(None, np.array([3, 1, 3, 2], dtype=np.int32), np.array([0, 4]))
    every_score(log, embeddings())["EASE"](log)
    assert log.items.tolist() == [3, 1, 3, 2]


# What they know


def data_set(folder: Path, last: int) -> Path:
    """Everybody is a test user; train.pkl ends before the targets, which are all `last`."""
    rng = np.random.default_rng(0)
    histories = {user: rng.integers(0, ITEMS - 1, 2 + user % 5).tolist() for user in range(20)}
    dump(folder / "train.pkl", histories)
    dump(folder / "test.pkl", {user: [*items, last] for user, items in histories.items()})
    np.save(folder / "item_text_embeddings.npy", np.random.default_rng(0).standard_normal((ITEMS, 32)))
    return folder


def test_no_score_knows_the_last_item_of_a_test_list(tmp_path):
    """A target that only the future has changes no score, and is as far from the top as an item nobody took."""
    found = {}
    for last in (0, ITEMS - 1):
        test = load_test(data_set(tmp_path / str(last), last), cold=False)
        histories, targets = test.sequences.split_targets()
        assert set(targets) == {last}
        known = scores.Statistics.of(whiten(test.embeddings), test.log)
        found[last] = {name: one.score(histories) for name, one in compare.methods_of(test, EVERY, known).items()}
    assert len(found[0]) == 7
    for name, score in found[0].items():
        assert np.array_equal(score, found[ITEMS - 1][name]), name
    for name in ("popularity", "transitions", "item cosine", "EASE"):  # the last item is in no history
        assert (found[0][name][:, -1] <= found[0][name].max(axis=1)).all() and found[0][name][:, -1].max() < 0.02, name


# Items of the history left out of the model's lists


@given(st.integers(0, 1000), st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_the_model_without_the_history_is_as_a_full_sort(seed, k):
    """Many items share codes, so that targets tie with items that are left out, within the lists and beyond them."""
    rng = np.random.default_rng(seed)
    items, users = int(rng.integers(1, 25)), 6
    codes = rng.integers(0, 2, (items, PUBLISHED.per_item)).astype(np.int16)
    candidates = np.flatnonzero(rng.random(items) < 0.8)
    candidates = candidates if len(candidates) else np.arange(items)
    logits = torch.from_numpy(rng.integers(0, 2, (users, PUBLISHED.per_item, PUBLISHED.vocabulary)).astype(np.float32))
    lists, targets = (
        [rng.integers(0, items, rng.integers(1, 6)).tolist() for _ in range(users)],
        rng.integers(0, items, users),
    )
    left_out = scores.distinct_items(Sequences.of(*lists), np.isin(np.arange(items), candidates))
    trie = Trie(codes[candidates], candidates)
    rows = rng.permutation(users)
    found = make_search("exact", trie, min(k, items), codes, targets, False, left_out)(logits[rows], rows)
    table = logits.log_softmax(-1)
    for place, user in enumerate(rows):
        may = [item for item in candidates if item not in lists[user]]
        may = {
            int(item): round(sum(float(table[user, slot, codes[item, slot]]) for slot in range(4)), 3) for item in may
        }
        expected = sorted(may, key=lambda item: (-may[item], item))[:k]
        assert found.items[place].tolist() == expected + [-1] * (min(k, items) - len(expected))
        assert torch.isinf(found.scores[place]).tolist() == [item < 0 for item in found.items[place].tolist()]
        target = int(targets[user])
        if target in may and sum(score > may[target] for score in may.values()) < min(k, items):
            assert found.above[place] == sum(score > may[target] for score in may.values())
            assert found.tied[place] == list(may.values()).count(may[target])
        elif target in may:
            assert found.above[place] >= min(k, items) or not found.tied[place]
