"""Trie and both searches against brute force on random catalogs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import search
from utils.fsq import VOCABULARY
from utils.search import beam_search, exact_search
from utils.Trie import Trie

# Few different codes, so that prefixes are shared, items collide, and scores tie.
code = st.sampled_from([0, 1, 2, 3, 7, 15359])
catalogs = st.lists(st.tuples(code, code, code, code), min_size=1, max_size=60)


def random_logits(users: int, seed: int, tied: bool = False) -> torch.Tensor:
    logits = torch.randn(users, 4, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return logits.mul(2).round() if tied else logits * 3


@given(catalogs)
@settings(max_examples=60, deadline=None)
def test_trie_answers_like_a_list(catalog):
    trie = Trie(np.array(catalog))
    assert len(trie) == len(catalog)
    for probe in [*catalog[:8], (3, 1, 7, 0), (15359, 15359, 0, 1), (5, 5, 5, 5)]:
        items = [item for item, codes in enumerate(catalog) if codes == probe]
        assert trie.items_of(torch.tensor(probe)).tolist() == items
        assert trie.has_item(torch.tensor([probe])).tolist() == [bool(items)]
        for depth in range(4):
            prefix = probe[:depth]
            following = sorted({codes[depth] for codes in catalog if codes[:depth] == prefix})
            assert trie.next_codes(torch.tensor(prefix, dtype=torch.int64)).tolist() == following
            assert trie.has_prefix(torch.tensor(prefix, dtype=torch.int64)[None]).tolist() == [bool(following)]


@given(catalogs, st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_trie_restricted_and_extended(catalog, seed):
    codes = np.array(catalog)
    allowed = np.random.default_rng(seed).random(len(codes)) < 0.5
    ids = np.arange(len(codes))
    for trie in (Trie(codes).restrict(allowed), Trie(codes[~allowed], ids[~allowed]).restrict(~allowed)):
        kept = trie.items.numpy()
        expected = Trie(codes[kept], kept)
        assert torch.equal(trie.items, expected.items)
        assert all(torch.equal(a, b) for a, b in zip(trie.starts, expected.starts, strict=True))
    grown = Trie(codes[allowed], ids[allowed]).extend(codes[~allowed], ids[~allowed])
    whole = Trie(codes)
    assert torch.equal(grown.items, whole.items) and torch.equal(grown.codes, whole.codes)
    assert all(torch.equal(a, b) for a, b in zip(grown.starts, whole.starts, strict=True))


def brute_force(logits, catalog, k):
    log_probs = logits.log_softmax(-1)
    lists = []
    for user in range(len(logits)):
        scores = []
        for item, codes in enumerate(catalog):
            total = log_probs[user, 0, codes[0]]
            for place in range(1, 4):
                total = total + log_probs[user, place, codes[place]]
            scores.append((-total.item(), item))
        lists.append([item for _, item in sorted(scores)[:k]])
    return lists


@given(catalogs, st.integers(1, 70), st.integers(0, 1000), st.booleans(), st.sampled_from([1, 7, 1 << 18]))
@settings(max_examples=60, deadline=None)
def test_exact_search_is_brute_force(catalog, k, seed, tied, chunk):
    """Collisions, ties, k larger than the catalog, catalogs in one chunk and in many."""
    logits = random_logits(3, seed, tied)
    before, search.CHUNK = search.CHUNK, chunk
    try:
        top = exact_search(logits, torch.tensor(catalog), torch.arange(len(catalog)), k)
    finally:
        search.CHUNK = before
    assert top.items.shape == top.scores.shape == (3, k)
    for found, scores, expected in zip(
        top.items.tolist(), top.scores.tolist(), brute_force(logits, catalog, k), strict=True
    ):
        assert found == expected + [-1] * (k - len(expected))
        assert all(score == -np.inf for score in scores[len(expected) :])


def walk_beams(logits, catalog, k, first, per_beam, beams):
    """The published procedure, one user and one beam at a time."""
    log_probs = (logits / 0.1).log_softmax(-1)
    lists = []
    for user in range(len(logits)):
        alive = [((), 0.0)]
        for depth in range(4):
            grown = []
            for prefix, score in alive:
                following = sorted({codes[depth] for codes in catalog if codes[:depth] == prefix})
                children = [(prefix + (c,), score + log_probs[user, depth, c].item()) for c in following]
                grown += sorted(children, key=lambda child: -child[1])[: per_beam if depth else first]
            alive = sorted(grown, key=lambda child: -child[1])[: beams if depth else first]
        lists.append([item for leaf, _ in alive for item, codes in enumerate(catalog) if codes == leaf][:k])
    return lists


@given(catalogs, st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_beam_search_is_the_published_walk(catalog, k, seed):
    logits = random_logits(3, seed)
    narrow = {"first": 3, "per_beam": 2, "beams": 4}
    top = beam_search(logits, Trie(np.array(catalog)), k, **narrow)
    for found, expected in zip(top.items.tolist(), walk_beams(logits, catalog, k, **narrow), strict=True):
        assert found == expected + [-1] * (k - len(expected))


def test_searches_agree_when_the_beam_is_wide_enough():
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 12, (200, 4))
    logits = random_logits(4, 9)
    beam = beam_search(logits, Trie(codes), 10, temperature=1.0, first=12, per_beam=12, beams=4000)
    exact = exact_search(logits, torch.from_numpy(codes), torch.arange(200), 10)
    assert torch.equal(beam.items, exact.items)
    torch.testing.assert_close(beam.scores, exact.scores)


def test_empty_catalog_and_no_users():
    empty = Trie(np.empty((0, 4), dtype=np.int16))
    assert not empty.has_prefix(torch.tensor([[1, 2]])).any()
    assert beam_search(random_logits(2, 0), empty, 3).items.tolist() == [[-1] * 3] * 2
    none = torch.empty(0, 4, dtype=torch.int64)
    assert exact_search(random_logits(2, 0), none, none[:, 0], 3).items.tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize(
    "codes", [np.zeros((3, 5), int), np.zeros((3, 4)), np.full((3, 4), 15360), np.full((3, 4), -1)]
)
def test_trie_refuses_what_is_no_catalog(codes):
    with pytest.raises(ValueError, match="codes must"):
        Trie(codes)
