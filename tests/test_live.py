"""Live histories: every answer is that of the whole history, at the price of one item."""

import threading

import numpy as np
import pytest

from serving.live import LiveHistories
from serving.recommender import Recommender
from tests.test_serving import ITEMS, encoder, ids, make, name_of, shop  # noqa: F401  # fixtures
from utils.errors import InputError


def same(live, recommender, user, history, **options) -> None:
    found, (expected,) = live.recommend(user, **options), recommender.recommend([history], **options)
    assert ids([found]) == ids([expected])
    chances = ([one.probability for one in side] for side in (found, expected))
    np.testing.assert_allclose(*chances, rtol=1e-4, atol=1e-6)
    assert [one.because for one in found] == [one.because for one in expected]


@pytest.mark.parametrize(
    ("rank_by", "predicts"), [("model", "codes"), ("blend", "codes"), ("model", "items"), ("log", "codes")]
)
def test_answers_are_those_of_the_whole_history(make, rank_by, predicts):  # noqa: F811
    recommender = make(rank_by, predicts)
    live, rng = LiveHistories(recommender), np.random.default_rng(0)
    histories = {user: [name_of(item) for item in rng.integers(0, ITEMS, user + 1)] for user in range(3)}
    for user, history in histories.items():
        live.start(user, history)
    for item in rng.integers(0, ITEMS, 20):
        user = int(item) % 3
        histories[user] = [*histories[user], name_of(item)]
        live.add(user, name_of(item))
        same(live, recommender, user, histories[user], k=5, explain=True)
        same(live, recommender, user, histories[user], k=3, candidates=[name_of(n) for n in range(40)])
        same(live, recommender, user, histories[user], k=3, filter=["brand = 'Maker 3'"])


@pytest.mark.parametrize("predicts", ["codes", "items"])
def test_weights_of_16_bits_change_little(make, predicts):  # noqa: F811
    recommender = make("model", predicts)
    half, rng = Recommender.open(recommender.bundle.path.parent, half=True), np.random.default_rng(0)
    histories = [[name_of(item) for item in rng.integers(0, ITEMS, 1 + row % 9)] for row in range(40)]
    chances = [
        {one.id: one.probability for found in side.recommend(histories, k=ITEMS) for one in found}
        for side in (recommender, half)
    ]
    assert chances[0] != chances[1]
    np.testing.assert_allclose(*([side[item] for item in sorted(chances[0])] for side in chances), rtol=0.05)
    live = LiveHistories(half)
    live.start("anna", histories[8])
    live.add("anna", "B001")
    same(live, half, "anna", [*histories[8], "B001"])
    with pytest.raises(InputError, match="for the CPU"):
        Recommender.open(recommender.bundle.path.parent, "cuda", half=True)


def test_a_history_slides_at_the_window(make):  # noqa: F811
    """The model then reads the newest three quarters of it, which grow until it is full again."""
    recommender = make("model")
    most = recommender.bundle.model.config.window - 1  # 31
    live, rng, history = LiveHistories(recommender), np.random.default_rng(1), ["B001"]
    live.start("anna", history)
    lengths = []
    for item in rng.integers(0, ITEMS, 80):
        history = [*history, name_of(item)]
        live.add("anna", name_of(item))
        read = live.read("anna")
        lengths.append(read)
        same(live, recommender, "anna", history[-read:], exclude_history=False)
    assert max(lengths) == most and min(lengths[most:]) == int(0.75 * most)
    assert sum(later < earlier for earlier, later in zip(lengths, lengths[1:], strict=False)) <= 80 / (most / 4)


def test_few_are_kept_and_the_least_recently_used_go(make):  # noqa: F811
    recommender = make("model")
    live = LiveHistories(recommender, users=3)
    for user in range(5):
        live.start(user, ["B001", "B002"])
        if user == 3:
            live.recommend(1)
    assert [user in live for user in range(5)] == [False, True, False, True, True] and len(live) == 3
    with pytest.raises(ValueError, match="no live history of 0"):
        live.add(0, "B003")
    one = live.bytes // 3
    small = LiveHistories(recommender, most_bytes=2 * one)
    for user in range(4):
        small.start(user, ["B001", "B002"])
    assert len(small) == 2 and small.bytes == 2 * one
    small.forget(3)
    small.forget("nobody")
    assert small.bytes == one
    small.forget(2)
    assert small.bytes == 0 == len(small)


def test_histories_follow_the_catalog(make):  # noqa: F811
    recommender = make("blend")
    live = LiveHistories(recommender)
    live.start("anna", ["B001", "B002", "B003"])
    recommender.update_items([("B002", {"title": "Another thing"})])
    same(live, recommender, "anna", ["B001", "B002", "B003"])
    recommender.remove_items(["B002"])
    same(live, recommender, "anna", ["B001", "B003"])
    make("model", "items")  # in its place
    live.add("anna", "B002")
    same(live, recommender, "anna", ["B001", "B003", "B002"])
    recommender.remove_items(["B001", "B003", "B002"])
    with pytest.raises(ValueError, match="is in the catalog any more"):
        live.recommend("anna")


def test_what_live_histories_refuse(make):  # noqa: F811
    live = LiveHistories(make("model"))
    odd = {"empty": [], "no item has the id": ["none"], "ids of the catalog": [{"title": "x"}], "list": "B001"}
    for said, history in odd.items():
        with pytest.raises(ValueError, match=said):
            live.start("anna", history)
    live.start("anna", ["B001"])
    for item in ("none", {"title": "x"}, None, 1.5):
        with pytest.raises(ValueError, match="id"):
            live.add("anna", item)
    same(live, live.recommender, "anna", ["B001"])
    for act in (live.recommend, live.read, lambda user: live.start(user, ["B001"])):
        with pytest.raises(ValueError, match="a user is a text"):
            act(["anna"])
    with pytest.raises(ValueError, match="explain is True or False"):
        live.recommend("anna", explain="no")
    with pytest.raises(ValueError, match="users must be 1 or more"):
        LiveHistories(live.recommender, users=0)


def test_from_several_threads(make):  # noqa: F811
    recommender = make("model")
    live, histories, faults = LiveHistories(recommender), {}, []

    def work(user: int) -> None:
        try:
            histories[user] = [name_of(user)]
            live.start(user, histories[user])
            for item in range(12):
                live.add(user, name_of(item * 3 + user))
                histories[user].append(name_of(item * 3 + user))
                live.recommend(user, k=2)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(user,)) for user in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    for user, history in histories.items():
        same(live, recommender, user, history)
