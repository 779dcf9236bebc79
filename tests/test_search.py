"""Trie and both searches against brute force on random catalogs."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import search
from utils.data import Sequences
from utils.errors import InputError
from utils.fsq import PUBLISHED
from utils.search import ItemSearch, beam_search, exact_search, rank_found, rank_targets
from utils.Trie import Trie

# Few different codes, so that prefixes are shared, items collide, and scores tie.
code = st.sampled_from([0, 1, 2, 3, 7, 15359])
catalogs = st.lists(st.tuples(code, code, code, code), min_size=1, max_size=60)


def random_logits(users: int, seed: int, tied: bool = False) -> torch.Tensor:
    logits = torch.randn(users, 4, PUBLISHED.vocabulary, generator=torch.Generator().manual_seed(seed))
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
    later = Trie(codes[: len(codes) // 2]).extend(codes[len(codes) // 2 :], ids[len(codes) // 2 :])
    assert all(torch.equal(a, b) for a, b in zip(later._tensors().values(), whole._tensors().values(), strict=True))
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


# How each is made to come up in small catalogs: one scan, many chunks, best-first to the proof, best-first giving up.
WAYS = {
    "one chunk": {},
    "many chunks": {"FIRST_ITEMS": 1, "SCAN_ITEMS": 3, "SCAN_USERS": 2},
    "best-first": {"BEST_FIRST_FROM": 0, "POSTING_COST": 0, "FIRST_POSTINGS": 1, "POSTINGS_AT_ONCE": 5},
    "few codes": {"BEST_FIRST_FROM": 0, "POSTING_COST": 0, "FIRST_POSTINGS": 3, "MOST_CODES": 8, "PROBED": 1},
    "giving up": {"BEST_FIRST_FROM": 0, "POSTING_COST": 1 << 20, "FIRST_POSTINGS": 1, "SCAN_USERS": 1, "PROBED": 2},
}


@pytest.mark.parametrize("way", WAYS)
@given(catalogs, st.integers(1, 70), st.integers(0, 1000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_exact_search_is_brute_force(way, catalog, k, seed, tied):
    """Collisions, ties, k larger than the catalog, ids that are not the places."""
    ids = np.random.default_rng(seed).permutation(3 * len(catalog))[: len(catalog)]
    logits = random_logits(3, seed, tied)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WAYS[way].items():
            patch.setattr(search, name, value)
        top = exact_search(logits, Trie(np.array(catalog), ids), k)
    assert top.items.shape == top.scores.shape == (3, k)
    by_id = [catalog[place] for place in np.argsort(ids)]
    for found, scores, expected in zip(
        top.items.tolist(), top.scores.tolist(), brute_force(logits, by_id, k), strict=True
    ):
        assert found == np.sort(ids)[expected].tolist() + [-1] * (k - len(expected))
        assert all(score == -np.inf for score in scores[len(expected) :])


def test_prefixes_asked_together_are_found_as_each_alone():
    """A search of few steps must not run on into another item's codes while longer ones go on."""
    trie = Trie(np.array([[0, 0, 0, 0], [1, 5, 0, 0], [1, 7, 0, 0], [1, 9, 0, 0]]))
    assert trie.has_item(torch.tensor([[0, 5, 0, 0], [1, 9, 0, 0], [1, 5, 0, 0]])).tolist() == [False, True, True]
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 6, (60, 4))
    trie, known = Trie(codes), set(map(tuple, codes.tolist()))
    every = np.stack(np.meshgrid(*[np.arange(7)] * 4, indexing="ij"), -1).reshape(-1, 4)
    assert trie.has_item(torch.from_numpy(every)).tolist() == [row in known for row in map(tuple, every.tolist())]


@pytest.mark.parametrize("way", ["one chunk", "many chunks"])
@given(catalogs, st.integers(1, 70), st.integers(0, 1000), st.sampled_from(["random", "rounded", "constant"]))
@settings(max_examples=40, deadline=None)
def test_targets_rank_among_all_candidates(way, catalog, k, seed, kind):
    """Ties by shared codes, by chance, and of everything with everything, within the list and beyond its end."""
    logits = random_logits(3, seed, kind == "rounded")
    if kind == "constant":
        logits = torch.zeros_like(logits)
    trie, codes = Trie(np.array(catalog)), torch.tensor(catalog)
    targets = codes[np.random.default_rng(seed).integers(0, len(catalog), 3)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WAYS[way].items():
            patch.setattr(search, name, value)
        top = exact_search(logits, trie, k)
        ranks = rank_targets(logits, trie, top, targets)
    log_probs = logits.log_softmax(-1)
    for user, target in enumerate(targets):
        scores = sum(log_probs[user, place, codes[:, place]] for place in range(4))
        own = sum(log_probs[user, place, target[place]] for place in range(4))
        above = int((scores > own).sum())
        assert ranks.tied[user] == ((scores == own).sum() if above < k else 0)
        assert ranks.above[user] == min(above, k)

    top = beam_search(logits, trie, k)
    ranks = rank_found(logits, trie, top, targets)
    for user, target in enumerate(targets.tolist()):
        sharing = [item for item, other in enumerate(catalog) if list(other) == target]
        found = sharing[0] in top.items[user].tolist()
        assert (ranks.tied[user] >= len(sharing)) if found else ranks.tied[user] == 0
        if found and kind == "random":
            assert (ranks.above[user], ranks.tied[user]) == (top.items[user].tolist().index(sharing[0]), len(sharing))


@pytest.mark.parametrize("way", WAYS)
def test_items_of_no_probability_come_before_no_item(way, monkeypatch):
    """Finite logits may be so far apart that a score is -inf."""
    for name, value in WAYS[way].items():
        monkeypatch.setattr(search, name, value)
    logits = torch.zeros(2, 4, PUBLISHED.vocabulary)
    logits[0, 0, 7], logits[0, 0, :7] = 3e38, -3e38
    top = exact_search(logits, Trie(np.array([[1, 0, 0, 0], [7, 0, 0, 0], [2, 0, 0, 0]])), 5)
    assert top.items.tolist() == [[1, 0, 2, -1, -1], [0, 1, 2, -1, -1]]
    assert top.scores[0, 1] == -torch.inf


@pytest.mark.parametrize("find", [exact_search, beam_search])
def test_searches_refuse_what_are_no_logits(find):
    trie = Trie(np.zeros((3, 4), dtype=int))
    for value in (torch.nan, torch.inf, -torch.inf):
        logits = random_logits(2, 0)
        logits[1, 2, 3] = value
        with pytest.raises(ValueError, match="logits must be finite"):
            find(logits, trie, 2)
    with pytest.raises(ValueError, match=r"logits must be \(B, 4, 15361\), found \(4, 15361\)"):
        find(random_logits(1, 0)[0], trie, 2)
    with pytest.raises(ValueError, match="k must be 1 or more"):
        find(random_logits(1, 0), trie, 0)
    with pytest.raises(ValueError, match="too large to be divided by 0.1"):
        beam_search(random_logits(1, 0) * 1e37, trie, 2)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 3.0, 12.0])
def test_best_first_proves_what_a_scan_finds(sharpness, monkeypatch):
    """A catalog in which nearly every item is skipped, from flat to peaked distributions."""
    monkeypatch.setattr(search, "POSTING_COST", 0)
    rng = np.random.default_rng(3)
    trie = Trie((rng.random((60_000, 4)) ** 2 * 15360).astype(np.int16))
    log_probs = (random_logits(5, 4) * sharpness / 3).log_softmax(-1)
    looked_at, plain = [], search._ranges
    monkeypatch.setattr(
        search, "_ranges", lambda begin, counts: looked_at.append(int(counts.sum())) or plain(begin, counts)
    )
    top, unproven = search.best_first(log_probs, trie, 20)
    assert not len(unproven)
    assert sum(looked_at) < 0.5 * 5 * len(trie)
    expected = search.scan(log_probs, trie, 20)
    assert torch.equal(top.items, expected.items) and torch.equal(top.scores, expected.scores)


def test_users_given_up_in_any_order_get_their_own_lists(monkeypatch):
    trie, logits = Trie(np.random.default_rng(0).integers(0, 30, (500, 4))), random_logits(3, 1)
    expected = exact_search(logits, trie, 5)
    monkeypatch.setattr(search, "BEST_FIRST_FROM", 0)
    nothing = search.TopK(torch.full((3, 5), -1), torch.full((3, 5), -torch.inf))
    monkeypatch.setattr(search, "best_first", lambda *_: (nothing, torch.tensor([2, 0, 1])))
    assert torch.equal(exact_search(logits, trie, 5).items, expected.items)


def test_a_saved_trie_opens_by_mapping(tmp_path):
    rng = np.random.default_rng(1)
    trie = Trie(rng.integers(0, 20, (300, 4)))
    trie.save(tmp_path / "index")
    opened = Trie.open(tmp_path / "index")
    assert all(torch.equal(a, b) for a, b in zip(trie._tensors().values(), opened._tensors().values(), strict=True))
    logits = random_logits(2, 0)
    assert torch.equal(exact_search(logits, opened, 5).items, exact_search(logits, trie, 5).items)
    with pytest.raises(InputError, match="Save the index again"):
        Trie.open(tmp_path / "elsewhere")


def test_another_file_under_a_name_of_a_saved_trie_is_refused(tmp_path):
    trie = Trie(np.random.default_rng(1).integers(0, 20, (300, 4)))
    for name, write, message in (
        ("postings", lambda path: np.save(path, np.zeros((4, 300))), "is not the file that .*trie.json"),
        ("codes", lambda path: path.write_bytes(b"nothing"), "is not a whole .npy"),
        ("items", lambda path: np.save(path, np.arange(300, dtype=np.int32)), "is not the file that .*trie.json"),
        ("codes", lambda path: path.unlink(), "does not exist"),
    ):
        trie.save(tmp_path / "index")
        (path,) = (tmp_path / "index").glob(f"{name}.*.npy")
        write(path)
        with pytest.raises(InputError, match=message + ".*Save the index again"):
            Trie.open(tmp_path / "index")


def test_an_index_that_is_replaced_opens_as_the_old_or_the_new_one(tmp_path):
    """Of the same size, so that shapes tell nothing."""
    rng = np.random.default_rng(2)
    two = [Trie(rng.integers(0, 50, (2000, 4))) for _ in range(2)]
    two[0].save(tmp_path / "index")
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            for trie in reversed(two):
                trie.save(tmp_path / "index")

    writer = threading.Thread(target=rewrite)
    writer.start()
    opened = []
    try:
        for _ in range(300):
            found = Trie.open(tmp_path / "index")._tensors()
            same = [all(torch.equal(found[name], tensor) for name, tensor in trie._tensors().items()) for trie in two]
            opened.append(same.index(True) if any(same) else None)
    finally:
        stop.set()
        writer.join()
    assert set(opened) == {0, 1}
    assert len(list((tmp_path / "index").iterdir())) == 10  # nine arrays and trie.json


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
    exact = exact_search(logits, Trie(codes), 10)
    assert torch.equal(beam.items, exact.items)
    torch.testing.assert_close(beam.scores, exact.scores)


def test_empty_catalog_and_no_users():
    empty = Trie(np.empty((0, 4), dtype=np.int16))
    assert not empty.has_prefix(torch.tensor([[1, 2]])).any()
    assert beam_search(random_logits(2, 0), empty, 3).items.tolist() == [[-1] * 3] * 2
    assert exact_search(random_logits(2, 0), empty, 3).items.tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize(
    "codes", [np.zeros((3, 5), int), np.zeros((3, 4)), np.full((3, 4), 15360), np.full((3, 4), -1)]
)
def test_trie_refuses_what_is_no_catalog(codes):
    with pytest.raises(ValueError, match="codes must"):
        Trie(codes)


def test_trie_refuses_ids_that_are_none():
    codes = np.ones((3, 4), dtype=int)
    with pytest.raises(ValueError, match="item 5 is there twice"):
        Trie(codes, np.array([5, 2, 5]))
    with pytest.raises(ValueError, match="item 2 is there twice"):
        Trie(codes).extend(codes[:1], np.array([2]))
    with pytest.raises(ValueError, match="the mask has 2 answers, the ids go up to 2"):
        Trie(codes).restrict(np.ones(2, dtype=bool))
    for odd in (np.array([0, -1, 2]), np.array([0, 1, 2**63], dtype=np.uint64)):
        with pytest.raises(ValueError, match="items must lie in"):
            Trie(codes, odd)
        with pytest.raises(ValueError, match="items must lie in"):
            Trie(codes).extend(codes, odd)
    assert Trie(codes, np.array([3, 1, 2], dtype=np.uint64)).items.tolist() == [1, 2, 3]


def test_trie_refuses_lists_for_masks_and_codes_of_no_item():
    trie = Trie(np.array([[1, 2, 3, 4], [1, 2, 3, 5], [0, 0, 0, 0]]))
    for ids in ([0, 2], np.array([0, 1, 1]), {0, 2}):
        with pytest.raises(ValueError, match="allowed must be a mask of bool"):
            trie.restrict(ids)
    assert trie.restrict([True, False, True]).items.tolist() == [2, 0]
    for codes in (torch.tensor([1, 2]), torch.tensor([1, 2, 3, 4, 5])):
        with pytest.raises(ValueError, match="an item has 4 codes"):
            trie.items_of(codes)
        with pytest.raises(ValueError, match="an item has 4 codes"):
            trie.has_item(codes)
    with pytest.raises(ValueError, match="nothing follows 4 codes"):
        trie.next_codes(torch.tensor([1, 2, 3, 4]))
    with pytest.raises(ValueError, match="a prefix has at most 4 codes"):
        trie.has_prefix(torch.zeros(2, 5, dtype=torch.int64))


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_search_by_products_is_brute_force(items, k, seed, leaves_out):
    """Lists and ranks by small whole numbers, which tie and have no rounding; more users than are scored at once."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.permutation(3 * items)[:items])
    vectors, queries = rng.integers(-2, 3, (items, 3)), rng.integers(-2, 3, (70, 3))
    targets = rng.integers(0, 3 * items, 70)
    out = [rng.permutation(ids)[: rng.integers(0, items + 1)].tolist() if leaves_out else [] for _ in range(70)]
    found = ItemSearch(torch.from_numpy(vectors).float(), torch.from_numpy(ids), k)
    top, ranks = found.find(
        torch.from_numpy(queries).float(), torch.from_numpy(targets), Sequences.of(*out) if leaves_out else None
    )
    if not leaves_out:
        assert torch.equal(found.search(torch.from_numpy(queries).float()).items, top.items)
    for user, query in enumerate(queries):
        scores = {item: query @ vector for item, vector in zip(ids.tolist(), vectors, strict=True)}
        scores = {item: score for item, score in scores.items() if item not in out[user]}
        expected = sorted(scores, key=lambda item: (-scores[item], item))[:k]
        assert top.items[user].tolist() == expected + [-1] * (k - len(expected))
        own = scores.get(int(targets[user]))
        tied = 0 if own is None else sum(score == own for score in scores.values())
        assert ranks.tied[user] == tied
        if tied:
            assert ranks.above[user] == sum(score > own for score in scores.values())


def test_search_by_products_refuses_what_makes_no_sense():
    found = ItemSearch(torch.ones(4, 2), torch.arange(4), 2)
    for odd in (float("nan"), float("inf")):
        for call in (lambda queries: found.find(queries, torch.tensor([1])), found.search, found.scores):
            with pytest.raises(InputError, match="scores of items are not finite"):
                call(torch.tensor([[1.0, odd]]))
    with pytest.raises(ValueError, match=r"queries must be \(B, 2\), found \(1, 3\)"):
        found.search(torch.ones(1, 3))
    assert found.search(torch.ones(0, 2)).items.shape == (0, 2)
    for ids in (torch.arange(3), torch.arange(5), torch.tensor([0, 1, 1, 2]), torch.tensor([3, 2, 1, 0])):
        with pytest.raises(ValueError, match="ids must ascend, one for each of 4 items"):
            ItemSearch(torch.ones(4, 2), ids, 2)
    with pytest.raises(ValueError, match="one for each of 3 items"):
        ItemSearch(torch.ones(2, 2), torch.arange(2), 2, torch.tensor([0, 1, 1]))
