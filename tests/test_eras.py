"""Eras: items on a line of time by the order of histories alone, and what a history of an era goes on with."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.stats import spearmanr

from utils import compare
from utils import eras as eras_room
from utils.blend import Domain, fit, fit_to_log, prepare
from utils.data import Sequences
from utils.eras import ERAS, UNKNOWN, Eras, item_times
from utils.scores import LogStatistics, Statistics, popular_in_era
from utils.whitening import whiten

ITEMS = 200


def drifting(users: int = 3000) -> Sequences:
    """Histories of four to ten items near each other in time: item 0 came first, item 199 last. Items 190 on are new.

    They come in no order.
    """
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, ITEMS - 30, users)
    return Sequences.of(
        *(
            np.sort(rng.normal(start, 4, rng.integers(4, 11)).round().astype(int).clip(0, ITEMS - 11)).tolist()
            for start in starts
        )
    )


def test_the_order_of_histories_tells_the_time_of_items():
    times = item_times(drifting(), ITEMS)[0][: ITEMS - 30]
    assert spearmanr(times, np.arange(len(times))).statistic > 0.99
    times, known = item_times(Sequences.of([0, 1, 2], [1, 2, 3], [2, 3, 4], [6, 6], [7]), 8)
    assert (np.diff(times[:5]) > 0).all() and known.tolist() == [True] * 5 + [False] * 3


def test_the_order_of_many_items_that_short_histories_link():
    """A line that is long against the histories: what is known at its ends must come through to its middle."""
    rng, items = np.random.default_rng(0), 2000
    names = rng.permutation(items)
    steps = (
        np.sort(rng.normal(start, 4, 6).round().astype(int).clip(0, items - 1)) for start in rng.uniform(0, items, 3000)
    )
    times, _ = item_times(Sequences.of(*(names[places].tolist() for places in steps)), items)
    assert spearmanr(times, np.argsort(names)).statistic > 0.95


def test_an_order_that_is_not_found_is_told(monkeypatch, capsys):
    monkeypatch.setattr(eras_room, "MOST_ITERATIONS", 2)
    eras = Eras.of(drifting(), ITEMS)
    assert "eras are left out" in capsys.readouterr().out
    assert (eras.item == UNKNOWN).all() and not eras.gains(drifting()).any()


def test_a_history_goes_on_with_items_of_its_time():
    eras = Eras.of(drifting(), ITEMS)
    gains = eras.gains(Sequences.of([20, 22, 21], [100, 103, 104], [5, 6, 100, 103, 104]))
    assert np.abs(gains.argmax(1) - [24, 106, 106]).max() <= 8
    assert np.array_equal(gains[1], gains[2])  # the latest items tell
    assert (gains[0, 15:30] > 1).all() and (gains[0, 80:150] < -0.8).all()


def test_the_gain_is_that_of_counted_ends():
    """Of two eras far from each other, whose smoothed counts do not meet, the gain is a ratio of counts."""
    log = Sequences.of(*[[0, 0]] * 600, *[[0, 1]] * 200, *[[1, 1]] * 800, *[[1, 0]] * 40)
    eras = Eras.of(log, 2)
    share = np.array([720, 920]) / 1640
    counts = np.array([[600, 200], [40, 800]]) * gaussian_filter1d(np.eye(ERAS)[40], 3.0).max()
    # To these 20 are added, which go along the line as the log does.
    expected = np.log((counts + 20 * share) / ((counts.sum(1, keepdims=True) + 20) * share))
    assert np.allclose(eras.gains(Sequences.of([0], [1])), expected, atol=0.05)
    assert np.allclose(np.diff(eras.line) * ERAS, ERAS / 2, atol=1)


def test_nothing_is_said_of_what_the_log_does_not_have():
    eras = Eras.of(drifting(), ITEMS)
    assert (eras.item[190:] == UNKNOWN).all() and (eras.item[100:110] != UNKNOWN).all()
    gains = eras.gains(Sequences.of([], [195], [195, 100], [100]))
    assert not gains[:2].any() and not gains[:, 190:].any() and gains[2].any()
    assert np.array_equal(gains[2], gains[3])
    assert np.array_equal(eras.gains(Sequences.of([100, 195, 195, 195]))[0], gains[3])
    assert not Eras.of(Sequences.of([], []), 3).gains(Sequences.of([0, 1], [])).any()
    assert not Eras.of(drifting(999), ITEMS).gains(drifting(20)).any()  # of so few histories


def test_items_without_order_have_no_era():
    """Whoever takes one item only says nothing of time."""
    eras = Eras.of(Sequences.of(*[[item] * 6 for item in range(100) for _ in range(20)]), 100)
    assert (eras.item == UNKNOWN).all() and not eras.gains(Sequences.of([50])).any()


def test_a_log_without_time_says_nearly_nothing():
    rng = np.random.default_rng(1)
    log = Sequences.of(*rng.integers(0, ITEMS, (4000, 6)).tolist())
    eras = Eras.of(log, ITEMS)
    assert np.abs(eras.gains(log.select(np.arange(50)))).max() < 0.6


@given(st.lists(st.lists(st.integers(0, 6), max_size=16), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_any_log(lists):
    log = Sequences.of(*lists)
    eras, steps = Eras.of(log, 7), {pair for items in lists for pair in pairwise(items) if pair[0] != pair[1]}
    known = {item for pair in steps for item in pair}
    assert [place for place, era in enumerate(eras.item) if era != UNKNOWN] == sorted(known)
    assert np.isfinite(eras.gain).all() and eras.line.min() >= 0 and eras.line.max() <= 1
    of_histories = eras.of_histories(log)
    assert [era == UNKNOWN for era in of_histories] == [known.isdisjoint(items) for items in lists]
    assert eras.gains(log).shape == (len(lists), 7)


def test_popularity_in_an_era():
    log = drifting()
    known = LogStatistics.of(log, ITEMS)
    histories = Sequences.of([20, 22, 21], [])
    found = popular_in_era(known.share, known.eras)(histories)
    assert np.allclose(found[0], known.share * np.exp(known.eras.gains(histories)[0]))
    assert np.allclose(found[1], known.share)


def test_the_fit_of_a_blend_sees_no_target_in_its_eras():
    """All histories end with item 195, which nobody took before: only the eras of the whole log know it."""
    log = Sequences.of(*([*items, 195] for items in drifting(1500).lists()))
    rows = whiten(np.random.default_rng(0).standard_normal((ITEMS, 32)))
    fitted = fit_to_log(log, rows, np.arange(ITEMS), exclude_history=False)["log"]
    whole = Domain.of(Statistics.of(rows, log))
    (chunk,) = prepare(whole, *log.select(np.arange(700)).split_targets(), np.arange(ITEMS), False)
    leaking = fit([[chunk]], whole.features())
    assert whole.log.eras.item[195] != UNKNOWN and leaking.blend.weights["era"] > 0
    assert fitted.after < leaking.after - 1


def test_the_row_is_there_where_eras_say_something():
    for users, there in ((3000, True), (999, False)):
        known = Statistics(np.zeros((ITEMS, 8), dtype=np.float32), LogStatistics.of(drifting(users), ITEMS), None)
        assert ("era popularity" in compare.log_scores(known)) == there
