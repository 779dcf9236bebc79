"""Metrics, sequences, the order of an epoch, and when checkpoints are written."""

import doctest
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from predict import PROTOCOLS
from utils import compare, metrics
from utils.data import Sequences
from utils.datasets import Interactions
from utils.errors import InputError
from utils.metrics import Ranks, TopKAccumulator, list_ranks, score_ranks
from utils.training.batches import epoch_batches, equal_work_batches, prefetched
from utils.training.plan import Plan, Progress
from utils.training.settings import Settings

histories = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=12), min_size=1, max_size=8)


@given(histories, st.integers(1, 14))
@settings(deadline=None)
def test_sequences_are_like_lists(lists, k):
    sequences = Sequences.of(*lists)
    rows = np.arange(len(lists))[::-1]
    for made, expected in (
        (sequences.select(rows), lists[::-1]),
        (sequences.last(k), [items[-k:] for items in lists]),
        (sequences.split_targets()[0], [items[:-1] for items in lists]),
    ):
        assert np.split(made.items, made.offsets[1:-1])[0].tolist() == expected[0]
        assert [part.tolist() for part in np.split(made.items, made.offsets[1:-1])] == expected
    assert sequences.split_targets()[1].tolist() == [items[-1] for items in lists]


def test_the_worked_examples_of_the_metrics():
    assert doctest.testmod(metrics) == (0, 6)
    assert doctest.testmod(compare, extraglobs={"np": np}) == (0, 1)


def test_metrics_by_hand():
    ranked = torch.tensor([[4, 2, 9], [1, 2, 3], [7, 8, -1], [5, 6, 7]])
    ranks = list_ranks(ranked, torch.tensor([2, 1, 3, 7]))
    assert ranks.tied.tolist() == [1, 1, 0, 1] and (ranks.above + 1)[[0, 1, 3]].tolist() == [2, 1, 3]
    accumulator = TopKAccumulator([3, 1])
    accumulator.accumulate(ranks.select(torch.tensor([True, True, True, False])))
    accumulator.accumulate(ranks.select(torch.tensor([False, False, False, True])))
    found = accumulator.reduce()
    assert found["hit@1"] == found["ndcg@1"] == 1 / 4
    assert found["hit@3"] == 3 / 4
    assert found["ndcg@3"] == pytest.approx((1 / math.log2(3) + 1 + 1 / math.log2(4)) / 4)
    assert found["mrr"] == pytest.approx((1 / 2 + 1 + 1 / 3) / 4)
    accumulator.reset()
    assert math.isnan(accumulator.reduce()["hit@1"])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_a_tie_counts_with_the_mean_over_its_orders(scores, ks):
    """Against every order of the candidates one by one, each in turn the target."""
    scores, accumulator, expected = torch.tensor([scores]).float(), TopKAccumulator(sorted(set(ks))), []
    for target in range(scores.shape[1]):
        accumulator.accumulate(score_ranks(scores, torch.tensor([target])))
        above, tied = ((scores > scores[0, target]).sum(), (scores == scores[0, target]).sum())
        orders = TopKAccumulator(sorted(set(ks)))
        for rank in range(tied):
            orders.accumulate(Ranks(torch.tensor([above + rank]), torch.ones(1, dtype=torch.int64)))
        expected.append(orders.reduce())
    found = accumulator.reduce()
    assert found == pytest.approx({name: np.mean([one[name] for one in expected]) for name in found})
    nobody = TopKAccumulator([3])
    nobody.accumulate(score_ranks(scores, torch.tensor([-1])))
    assert set(nobody.reduce().values()) == {0}


def test_an_epoch_is_a_permutation_that_its_number_decides():
    def order(seed, epoch):
        return np.concatenate(list(epoch_batches(25, 4, seed, epoch))).tolist()

    assert sorted(order(0, 0)) == list(range(25))
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert [len(batch) for batch in epoch_batches(25, 4, 0, 0)] == [4] * 6 + [1]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(50, 500), st.integers(0, 3))
@settings(deadline=None)
def test_batches_of_equal_work(work, per_batch, epoch):
    work = np.array(work)
    batches = list(equal_work_batches(work, per_batch, 7, epoch))
    assert np.sort(np.concatenate(batches)).tolist() == list(range(len(work)))
    assert len(batches) == max(1, work.sum() // per_batch)
    share = work.sum() / len(batches)
    assert all(len(batch) and abs(work[batch].sum() - share) <= work.max() for batch in batches)


def test_prefetched_batches_are_the_same_and_errors_arrive():
    def failing():
        yield 1
        yield 2
        raise InputError("row 3 is bad")

    waits, seen = [], []
    with pytest.raises(InputError, match="row 3"):
        for batch in prefetched(failing(), waits.append):
            seen.append(batch)
    assert seen == [1, 2] and len(waits) == 2
    assert list(prefetched(iter([4, 5]), waits.append)) == [4, 5]


def test_checkpoints_at_the_published_moments():
    histories, batch_size, per_epoch, saved = 20_045, 4, 5012, {}
    sequences = Sequences(range(histories), None, np.arange(histories + 1))
    plan = Plan(Interactions(sequences, catalog=None, tokenizer=None), Settings(), window=256)
    reached = [
        Progress(epoch * per_epoch + step, epoch, min(step * batch_size, histories))
        for epoch in (0, 1)
        for step in range(1, per_epoch + 1)
    ]
    for before, progress in zip([Progress(), *reached], reached, strict=False):
        saved |= {name: progress.step for name in plan.checkpoint_names(before, progress)}
    tenths = {
        f"layer_3_epoch_0_model_{tenth:02d}.pt": math.ceil(math.ceil(tenth * histories / 10) / batch_size)
        for tenth in range(1, 11)
    }
    others = {
        "layer_3_epoch_0_step_5000.pt": 5000,
        "layer_3_epoch_1_step_10000.pt": 10000,
        "layer_3_epoch_0.pt": per_epoch,
        "layer_3_epoch_1.pt": 2 * per_epoch,
    }
    assert saved == tenths | others
    assert plan.checkpoint_names(reached[5], reached[6], stopping=True) == ["layer_3_epoch_0_step_7.pt"]
    few = Plan(plan.data, Settings(save_last=True, epoch=2), window=256)
    saved = [few.checkpoint_names(before, progress) for before, progress in pairwise([Progress(), *reached])]
    assert not any(saved[:-1]) and saved[-1] == ["layer_3_last.pt"]
    assert few.checkpoint_names(reached[5], reached[6], stopping=True) == ["layer_3_last.pt"]


@pytest.mark.parametrize("protocol", ["corrected", "released"])
def test_prediction_batches(protocol):
    lengths = np.random.default_rng(0).geometric(0.05, 200)
    rows = list(PROTOCOLS[protocol].batches(lengths, 16))
    assert sorted(np.concatenate(rows)) == list(range(200))
    if protocol == "released":
        assert np.concatenate(rows).tolist() == list(range(200))
        assert max(map(len, rows)) == 16
    else:
        longest_first = lengths[np.concatenate(rows)]
        assert (np.diff(longest_first) <= 0).all()
        work = np.array([lengths[batch].sum() for batch in rows])
        assert (work <= max(16 * lengths.mean(), lengths.max())).all()  # a history longer than a batch goes alone
        assert (work[:-1] > 8 * lengths.mean()).all()
