"""Eras: items on a line of time by the order of histories alone, and what a history of an era goes on with."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.stats import spearmanr

from utils.data import Sequences
from utils.eras import ERAS, UNKNOWN, Eras, item_times
from utils.scores import LogStatistics, popular_in_era

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
    times = item_times(drifting(), ITEMS)[: ITEMS - 30]
    assert spearmanr(times, np.arange(len(times))).statistic > 0.99
    assert (np.diff(item_times(Sequences.of([0, 1, 2], [1, 2, 3], [2, 3, 4]), 5)) > 0).all()


def test_a_history_goes_on_with_items_of_its_time():
    eras = Eras.of(drifting(), ITEMS)
    gains = eras.gains(Sequences.of([20, 22, 21], [100, 103, 104], [5, 6, 100, 103, 104]))
    assert np.abs(gains.argmax(1) - [24, 106, 106]).max() <= 8
    assert np.array_equal(gains[1], gains[2])  # the latest items tell
    assert (gains[0, 15:30] > 1).all() and (gains[0, 80:150] < -0.8).all()


def test_the_gain_is_that_of_counted_ends():
    """Of two eras far from each other, whose smoothed counts do not meet, the gain is a ratio of counts."""
    log = Sequences.of(*[[0, 0]] * 300, *[[0, 1]] * 100, *[[1, 1]] * 400, *[[1, 0]] * 20)
    eras = Eras.of(log, 2)
    share = np.array([720, 920]) / 1640
    counts = np.array([[300, 100], [20, 400]]) * gaussian_filter1d(np.eye(ERAS)[40], 3.0).max()
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
    assert not Eras.of(Sequences.of([], []), 3).gains(Sequences.of([0, 1], [])).any()


def test_a_log_without_time_says_nearly_nothing():
    rng = np.random.default_rng(1)
    log = Sequences.of(*rng.integers(0, ITEMS, (4000, 6)).tolist())
    eras = Eras.of(log, ITEMS)
    assert np.abs(eras.gains(log.select(np.arange(50)))).max() < 0.6


@given(st.lists(st.lists(st.integers(0, 6), max_size=16), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_any_log(lists):
    log = Sequences.of(*lists)
    eras, known = Eras.of(log, 7), {item for items in lists for item in items}
    assert [place for place, era in enumerate(eras.item) if era != UNKNOWN] == sorted(known)
    assert np.isfinite(eras.gain).all() and eras.line.min() >= 0 and eras.line.max() <= 1
    of_histories = eras.of_histories(log)
    assert [era == UNKNOWN for era in of_histories] == [not items for items in lists]
    assert eras.gains(log).shape == (len(lists), 7)


def test_popularity_in_an_era():
    log = drifting()
    known = LogStatistics.of(log, ITEMS)
    histories = Sequences.of([20, 22, 21], [])
    found = popular_in_era(known.share, known.eras)(histories)
    assert np.allclose(found[0], known.share * np.exp(known.eras.gains(histories)[0]))
    assert np.allclose(found[1], known.share)
