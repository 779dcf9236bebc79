"""pre_train.py --data_share: who is drawn, and that training on a share is training on these users and no others."""

import json
import time

import numpy as np
import pytest

from tests import runs
from tests.conftest import dump
from utils import packed
from utils.datasets import load_pre_train
from utils.errors import InputError
from utils.pickles import load_pickle
from utils.training.batches import drawn_users, epoch_batches
from utils.training.plan import Plan, Progress
from utils.training.settings import Settings

HISTORIES, SHARE = 161, 0.3
MODEL = "--width 64 --tf_layer 1 --lr 2e-3 --device cpu --log_file log.jsonl --batch_size 8 --epoch 2 --save_last "
RUN = MODEL + f"--data_path ../pt --data_share {SHARE} "
LAST = "layer_1_last.pt"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("share")
    runs.make_data(folder, HISTORIES)
    return folder


@pytest.fixture(scope="module")
def trained(data):
    """A run on a share, with the folder that it was made in: 14 steps of two epochs of 48 histories each."""
    folder = data / "trained"
    folder.mkdir()
    (folder / "said_by_it").write_text(runs.finish(folder, RUN))
    return folder


# Who is drawn


def test_a_larger_share_has_the_users_of_a_smaller():
    shares = [0.001, 0.05, 0.1, 0.25, 0.5, 0.999, 1.0]
    drawn = [drawn_users(5000, share, 0) for share in shares]
    assert [len(users) for users in drawn] == [round(5000 * share) for share in shares]
    for smaller, larger in zip(drawn, drawn[1:], strict=False):
        assert np.isin(smaller, larger).all()
    assert all((np.diff(users) > 0).all() and users.dtype == np.int32 for users in drawn)


def test_another_seed_draws_others_as_chance_has_it():
    one, other = drawn_users(10_000, 0.5, 0), drawn_users(10_000, 0.5, 1)
    assert 2350 < np.isin(one, other).sum() < 2650  # half of 5,000, with a deviation of 25
    assert abs(one.mean() - 5000) < 150, "of the whole file, not of its beginning"


def test_the_draw_is_the_same_on_every_machine():
    """Studies are compared across machines and years: these users must never change."""
    assert drawn_users(40, 0.2, 0).tolist() == [9, 15, 21, 25, 29, 30, 33, 38]
    assert drawn_users(40, 0.2, 7).tolist() == [0, 7, 8, 22, 25, 34, 37, 38]


def test_a_share_of_nobody_is_refused():
    with pytest.raises(InputError, match=r"--data_share 0.001 of 161 users is less than one of them. Give more."):
        drawn_users(161, 0.001, 0)


def test_millions_of_users_are_drawn_in_seconds():
    started = time.perf_counter()
    assert len(drawn_users(2_000_000, 0.25, 0)) == 500_000
    assert time.perf_counter() - started < 5, "a loop in Python would take longer"


# What is trained on


def plan_of(data, process=0, processes=1, **flags):
    settings = Settings(**{"batch_size": 8, "epoch": 2, "data_share": SHARE, **flags})
    return Plan(load_pre_train(data / "pt"), settings, 256, process, processes)


@pytest.mark.parametrize("tokens", [None, 1024])
def test_an_epoch_reads_the_drawn_users_and_counts_them(data, tokens):
    drawn = drawn_users(HISTORIES, SHARE, 0).tolist()
    for seed in (0, 1):  # of training: another order of the same users
        plan = plan_of(data, tokens_per_batch=tokens, seed=seed)
        steps = list(plan.steps(Progress()))
        for epoch in (0, 1):
            read = [step for step in steps if step.progress.epoch == epoch]
            assert sorted(np.concatenate([step.rows for step in read]).tolist()) == drawn
            assert read[-1].progress.row == len(drawn) == plan.histories
        assert len(steps) == plan.total_steps(Progress()) and plan.is_last(steps[-1].progress)
        assert plan.target_tokens().sum() == sum(step.targets for step in steps) / 2
    assert set(np.concatenate([one.rows for one in plan_of(data, data_share_seed=1).steps(Progress())])) != set(drawn)


def test_the_share_of_all_is_the_training_of_always(data):
    """Whatever its seed: the same rows in the same steps as before there was a flag."""
    for flags in ({"data_share": 1.0}, {"data_share": 1.0, "data_share_seed": 3}):
        steps = list(plan_of(data, seed=5, **flags).steps(Progress()))
        expected = [rows for epoch in (0, 1) for rows in epoch_batches(HISTORIES, 8, 5, epoch)]
        assert [step.rows.tolist() for step in steps] == [rows.tolist() for rows in expected]


def test_training_on_a_share_is_training_on_a_file_of_its_users(data, trained, place):
    """Bit by bit, the learning rate's schedule and the initial weights included; the catalog is the same."""
    (data / "subset").mkdir()
    for file in (data / "pt").glob("*.*"):
        (data / "subset" / file.name).hardlink_to(file)
    (data / "subset/train.pkl").unlink()
    lists = list(load_pickle(data / "pt/train.pkl", dict, "").items())
    dump(data / "subset/train.pkl", dict(lists[row] for row in drawn_users(HISTORIES, SHARE, 0)))
    said = runs.finish(place, MODEL + "--data_path ../subset --ckpt_dir subset")
    assert runs.same(place / "subset" / LAST, trained / "ckpt" / LAST)
    guess = said.split("guessing from ")[1].splitlines()[0]
    assert guess in (trained / "said_by_it").read_text(), "the guess is of the users that are trained on"
    assert said.split(" histories, ")[1].split(";")[0] in (trained / "said_by_it").read_text()
    assert "48 of 161 histories, " in (trained / "said_by_it").read_text()
    assert "\n48 histories, " in said


def test_items_are_counted_among_some_users(data, monkeypatch):
    sequences, catalog = load_pre_train(data / "pt")[:2]
    users = np.array([3, 5, 160])
    expected = np.bincount(sequences.select(users).items, minlength=len(catalog))
    monkeypatch.setattr(packed, "COUNTED_USERS", 2)
    assert np.array_equal(packed.item_counts(sequences, catalog, users), expected)


# Runs


def test_the_log_and_the_checkpoint_say_which_share(trained):
    start = runs.records(trained / "log.jsonl")[0]
    assert start["histories"] == 48 and start["start"]["data_share"] == SHARE and start["start"]["data_share_seed"] == 0
    metadata = json.loads((trained / "ckpt" / LAST).with_suffix(".json").read_text())
    assert metadata["training"]["data_share"] == SHARE and metadata["histories"] == HISTORIES
    assert metadata["place"] == {"step": 12, "epoch": 1, "row": 48}
    assert "data_share = 0.3\n" in (trained / "ckpt" / LAST).with_suffix(".toml").read_text()
    assert max(record["epoch"] for record in runs.records(trained / "log.jsonl")[1:]) == 2.0


def test_a_resumed_run_keeps_its_share(trained, place):
    runs.finish(place, RUN + "--max_steps 5")
    refused = runs.finish(place, "--resume --ckpt_dir ckpt --data_share 0.5", expect=2)
    assert "--data_share 0.5 contradicts" in refused and "which has 0.3" in refused
    refused = runs.finish(place, "--resume --ckpt_dir ckpt --data_share_seed 2", expect=2)
    assert "--data_share_seed 2 contradicts" in refused
    runs.finish(place, "--resume --ckpt_dir ckpt --max_steps 12")
    assert runs.same(place / "ckpt" / LAST, trained / "ckpt" / LAST)


def test_processes_share_out_the_same_users(data):
    one, *two = (plan_of(data), plan_of(data, 0, 2, batch_size=4), plan_of(data, 1, 2, batch_size=4))
    steps = [list(plan.steps(Progress())) for plan in (one, *two)]
    assert len({len(each) for each in steps}) == 1
    for alone, first, second in zip(*steps, strict=True):
        assert np.array_equal(alone.rows, first.rows) and np.array_equal(alone.rows, second.rows)
        assert alone.targets == first.targets + second.targets > first.targets > 0


def test_a_refit_draws_among_as_many_users_or_not_at_all(data, trained, place):
    """Elsewhere the same share would be of other users."""
    refit = f"--refit_of ../trained/ckpt/{LAST} --device cpu --log_file log.jsonl --data_path "
    runs.finish(place, refit + "../pt")
    assert runs.same(place / "ckpt" / LAST, trained / "ckpt" / LAST)
    (place / "more").mkdir()
    runs.make_data(place / "more", HISTORIES + 1)
    refused = runs.finish(place, refit + "more/pt --ckpt_dir other", expect=2)
    assert "was trained on a share of 161 histories, and more/pt has 162" in refused


def test_too_small_a_share_leaves_nothing_behind(data, place):
    refused = runs.finish(place, MODEL + "--data_path ../pt --data_share 0.001", expect=2)
    assert "--data_share 0.001 of 161 users is less than one" in refused and not list(place.glob("ckpt/*"))


@pytest.mark.parametrize("value", ["0", "1.5", "-1", "nan", "all"])
def test_what_is_no_share(data, place, value):
    assert "is not a finite number above 0 and at most 1" in runs.finish(place, RUN + f"--data_share {value}", expect=2)
