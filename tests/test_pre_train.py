"""Pre-training that is killed, told to stop, resumed, shared out among processes, and watched."""

import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import time
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch

import pre_train
from eval import evaluate
from model import Items, load_model
from tests import runs
from tests.conftest import House, dump
from utils import plot_logs
from utils.data import IGNORED, make_batch, training_batch
from utils.datasets import HELD_OUT, load_eval, load_pre_train
from utils.errors import InputError
from utils.files import content, save_json
from utils.pickles import load_pickle
from utils.TimeLogger import TimeLogger
from utils.training import processes, state
from utils.training.plan import Plan, Progress, Step
from utils.training.settings import Settings
from utils.training.state import find_state, step_seed

HISTORIES = 161  # in batches of 8 one is left over: fewer than two processes
MODEL = "--data_path ../pt --width 64 --tf_layer 1 --lr 2e-3 --device cpu --log_file log.jsonl --ckpt_dir ckpt "
RUN = MODEL + "--batch_size 8 --epoch 2 --save_every 4 --eval_every 6 --eval_path ../ev "


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pre_train")
    runs.make_data(folder, HISTORIES)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data):
    """The run that others are held against: 42 steps in two epochs, dropout included."""
    folder = data / "undisturbed"
    folder.mkdir()
    runs.finish(folder, RUN)
    return folder


# Resuming


def test_killed_at_random_moments_the_weights_are_the_same(place, undisturbed):
    """Fourteen kills: every other at a random moment, the others while a file of a checkpoint is being written."""
    moments, log, epochs = random.Random(11), place / "log.jsonl", []
    for number in range(14):
        flags = RUN + "--resume auto"
        if number % 2:
            process = runs.start(place, flags, runs.AtWrite(moments.randrange(1, 6), runs.die))
            process.join()
        else:
            process = runs.start(place, flags)
            runs.wait_for_step(log, 1 + 3 * number, process)  # not further, so that the steps last for all kills
            time.sleep(moments.uniform(0, 0.05))
            process.kill()
            process.join()
        if process.exitcode == 0:  # it came to its end before its moment
            break
        assert process.exitcode == -signal.SIGKILL, (place / "said").read_text()
        epochs.append(max((record["epoch"] for record in runs.records(log) if "epoch" in record), default=0))
    assert number >= 10 and sum(0 < epoch < 1 for epoch in epochs) and sum(epoch > 1 for epoch in epochs), epochs
    runs.finish(place, RUN + "--resume")
    ours, theirs = place / "ckpt", undisturbed / "ckpt"
    names = {path.name for path in theirs.glob("*.pt")}
    assert {path.name for path in ours.glob("*.pt")} == names
    assert all(runs.same(ours / name, theirs / name) for name in names)
    ours, theirs = (
        torch.load(folder / "layer_1_epoch_1.resume", weights_only=True)["optimizer"]["state"]
        for folder in (ours, theirs)
    )
    assert all(torch.equal(ours[name][kind], theirs[name][kind]) for name in theirs for kind in theirs[name])
    assert not list((place / "ckpt").glob(".*")), "what killed runs left is swept"


def test_resumed_settings_are_those_of_the_checkpoint(place, undisturbed):
    runs.finish(place, RUN + "--max_steps 10 --dropout 0.2")
    metadata = json.loads((place / "ckpt/layer_1_epoch_0_step_10.json").read_text())
    assert metadata["step"] == 10 and metadata["place"] == {"step": 10, "epoch": 0, "row": 80}
    assert metadata["config"]["dropout"] == metadata["training"]["dropout"] == 0.2
    assert set(metadata["versions"]) == {"torch", "transformers", "accelerate"} and len(metadata["data"]) == 32
    runs.finish(place, "--ckpt_dir ckpt --resume --max_steps 12 --lr 1e-3")
    said = (place / "said").read_text()
    assert "step 10: --max_steps 12 (was 10), --lr 0.001 (was 0.002)" in said
    metadata = json.loads((place / "ckpt/layer_1_epoch_0_step_12.json").read_text())
    assert metadata["training"]["batch_size"] == 8 and metadata["training"]["lr"] == 1e-3
    assert [record["lr"] for record in runs.records(place / "log.jsonl") if "lr" in record][-1] == 1e-3
    assert "earlier run" not in said
    for steps in (12, 5):
        runs.finish(place, f"--ckpt_dir ckpt --resume ckpt/layer_1_epoch_0_step_12.pt --max_steps {steps}")
        assert "nothing to do: 12 steps were taken" in (place / "said").read_text()


def test_sigterm_writes_a_checkpoint_and_ends_well(place, undisturbed):
    process = runs.start(place, RUN + "--save_every 1000")
    runs.wait_for_step(place / "log.jsonl", 12, process)
    process.terminate()
    process.join()
    said = (place / "said").read_text()
    assert process.exitcode == 0 and "told to stop (SIGTERM) after step" in said, said
    step = int(said.split("after step ")[1].split()[0])
    assert (place / f"ckpt/layer_1_epoch_{(step - 1) // 21}_step_{step}.resume").exists()
    runs.finish(place, "--ckpt_dir ckpt --resume")
    assert runs.same(place / "ckpt/layer_1_epoch_1.pt", undisturbed / "ckpt/layer_1_epoch_1.pt")


def test_the_last_and_the_best_are_kept(place):
    runs.finish(place, RUN + "--keep 3")
    kept = {path.name for path in (place / "ckpt").iterdir()}
    last = ["layer_1_epoch_1_step_36", "layer_1_epoch_1_step_40", "layer_1_epoch_1"]
    expected = {f"{name}{ending}" for name in last for ending in (".pt", ".json", ".toml", ".resume")}
    assert kept == expected | {f"layer_1_best{ending}" for ending in (".pt", ".json", ".toml")}
    best = json.loads((place / "ckpt/layer_1_best.json").read_text())
    evaluated = [record for record in runs.records(place / "log.jsonl") if "eval_loss" in record]
    assert [record["step"] for record in evaluated] == [6, 12, 18, 24, 30, 36, 42]
    lowest = min(evaluated, key=lambda record: record["eval_loss"])
    assert best["step"] == lowest["step"] and best["eval_loss"] == pytest.approx(lowest["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("others", [False, True])
def test_the_best_is_of_the_same_held_out_histories(place, undisturbed, others):
    """A loss on other histories than those of --eval_path now is no measure for it."""
    loaded = torch.load(undisturbed / "ckpt/layer_1_epoch_1_step_40.resume", weights_only=True)
    best = {**loaded["about"]["best"], "eval_loss": 0.5, **({"held_out": ["other"]} if others else {})}
    torch.save({**loaded, "about": {**loaded["about"], "best": best}}, place / "low.resume")
    runs.finish(place, "--ckpt_dir ckpt --resume .")
    assert ("the best weights are chosen anew" in (place / "said").read_text()) == others
    assert (place / "ckpt/layer_1_best.pt").exists() == others


def test_all_weights_and_the_last_two_states_are_kept(undisturbed):
    states = {path.name for path in (undisturbed / "ckpt").glob("*.resume")}
    assert states == {"layer_1_epoch_1_step_40.resume", "layer_1_epoch_1.resume"}
    names = {f"layer_1_epoch_0_model_{tenth:02d}.pt" for tenth in range(1, 11)}
    names |= {f"layer_1_epoch_{(step - 1) // 21}_step_{step}.pt" for step in range(4, 41, 4)}
    names |= {"layer_1_epoch_0.pt", "layer_1_epoch_1.pt", "layer_1_best.pt"}
    assert {path.name for path in (undisturbed / "ckpt").glob("*.pt")} == names


def test_a_save_under_several_names_counts_once(place):
    """The end of the first epoch has three names; the save before it is still there to resume from."""
    flags = MODEL + "--batch_size 8 --epoch 1 --save_every 21 "
    runs.finish(place, flags)
    states = {path.name for path in (place / "ckpt").glob("*.resume")}
    assert states == {"layer_1_epoch_0_model_09.resume", "layer_1_epoch_0.resume"}
    runs.finish(place, flags.replace(" ckpt ", " kept ") + "--keep 2")
    names = ["layer_1_epoch_0_model_09", "layer_1_epoch_0_model_10", "layer_1_epoch_0_step_21", "layer_1_epoch_0"]
    expected = states | {f"{name}{ending}" for name in names for ending in (".pt", ".json", ".toml")}
    assert {path.name for path in (place / "kept").iterdir()} == expected


@pytest.fixture
def two_states(place, undisturbed):
    """The last two states of the undisturbed run, at steps 40 and 42, with a change to what they tell."""

    def make(**of_the_first):
        for name in ("layer_1_epoch_1_step_40.resume", "layer_1_epoch_1.resume"):
            loaded = torch.load(undisturbed / "ckpt" / name, weights_only=True)
            changed = of_the_first if "step_40" in name else {}
            torch.save({**loaded, "about": {**loaded["about"], **changed}}, place / name)

    return make


def test_steps_and_no_clock_decide_which_state_is_the_last(place, two_states):
    two_states(time="2999-01-01T00:00:00.000000+00:00")
    assert find_state(place, "latest").progress.step == 42


def test_a_run_taken_back_goes_on_from_its_own_states(place, undisturbed):
    """Step 41 of a run that was taken back to step 40 is later than step 42, which it has given up."""
    shutil.copytree(undisturbed / "ckpt", place / "ckpt")
    runs.finish(place, "--ckpt_dir ckpt --resume ckpt/layer_1_epoch_1_step_40.pt --max_steps 41")
    assert find_state(place / "ckpt", "latest").progress.step == 41
    runs.finish(place, RUN + "--max_steps 2")
    assert find_state(place / "ckpt", "latest").progress.step == 2


def test_only_the_state_to_go_on_from_is_read_in_full(place, two_states, monkeypatch):
    two_states()
    read, testzip = [], zipfile.ZipFile.testzip
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: read.append(archive.filename) or testzip(archive))
    assert find_state(place, "latest").progress.step == 42
    assert read == [str(place / "layer_1_epoch_1.resume")]
    monkeypatch.setenv("RANK", "1")
    assert find_state(place, "latest").progress.step == 42 and len(read) == 1, "the first process has read it"


def refused(place, undisturbed, monkeypatch, capsys, flags, *said):
    House.refuse(Namespace(folder=undisturbed), monkeypatch, capsys, f"python pre_train.py {flags}", *said)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--width 128", ("--width 128 contradicts", "which has 64")),
        ("--tf_layer 2", ("--tf_layer 2 contradicts", "which has 1")),
        ("--seed 7", ("--seed 7 contradicts", "which has 0")),
        ("--data_path ../other", ("was trained on other data", "../other")),
        ("--eval_path ../nowhere --eval_every 3", ("../nowhere/eval.pkl", "make_eval.py")),
    ],
)
def test_a_resumed_run_must_be_the_same_run(data, place, undisturbed, monkeypatch, capsys, flags, said):
    if "other" in flags:
        (data / "other").mkdir()
        runs.make_data(data / "other", 12)
        flags = flags.replace("other", "other/pt")
    refused(place, undisturbed, monkeypatch, capsys, f"--ckpt_dir ckpt --resume {flags}", *said)


def test_damaged_states_are_passed_over_or_refused(place, undisturbed, monkeypatch, capsys):
    refused(place, undisturbed, monkeypatch, capsys, "--ckpt_dir nowhere --resume", "nowhere has no training state")
    refused(
        place, undisturbed, monkeypatch, capsys, "--resume ckpt/layer_1_epoch_0.pt", "does not exist", "step_40.resume"
    )
    assert find_state(place, "auto") is None
    whole = (undisturbed / "ckpt/layer_1_epoch_1.resume").read_bytes()
    (place / "a.resume").write_bytes((undisturbed / "ckpt/layer_1_epoch_1_step_40.resume").read_bytes())
    half, flipped = whole[: len(whole) // 2], bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (half, flipped, b""):
        (place / "b.resume").write_bytes(damaged)
        assert find_state(place, "latest").progress.step == 40
        assert "passed over" in capsys.readouterr().out
        with pytest.raises(InputError, match="not a whole training state"):
            find_state(place, str(place / "b.pt"))
    (place / "a.resume").unlink()
    with pytest.raises(InputError, match="not a whole training state"):
        find_state(place, "auto")  # never started anew for want of a whole one
    loaded = torch.load(undisturbed / "ckpt/layer_1_epoch_1.resume", weights_only=True)
    without_starts = {name: value for name, value in loaded["about"].items() if name != "starts"}
    changes = ({"format": 1}, {"place": {"steps": 1}}, {"written": None})
    for about in (without_starts, *({**loaded["about"], **change} for change in changes)):
        torch.save({**loaded, "about": about}, place / "b.resume")
        with pytest.raises(InputError, match="not a whole training state"):
            find_state(place, str(place / "b.resume"))


@pytest.mark.parametrize("name", ["/home/all_i_have.pt", "../all_i_have.pt", "notes.txt"])
def test_a_state_that_leads_out_of_its_folder_is_refused(place, undisturbed, monkeypatch, capsys, name):
    """--keep removes what a state, which may be of a stranger, lists as written."""
    loaded = torch.load(undisturbed / "ckpt/layer_1_epoch_1.resume", weights_only=True)
    torch.save({**loaded, "about": {**loaded["about"], "written": [[name]]}}, place / "odd.resume")
    said = f"'{name}' is no checkpoint beside it"
    refused(place, undisturbed, monkeypatch, capsys, f"--ckpt_dir {place} --resume {place / 'odd.pt'}", said)


def test_a_state_of_another_version_goes_on(place, undisturbed):
    """A setting that is not known any more is told; one that is new has its default; a switch can be turned off."""
    loaded = torch.load(undisturbed / "ckpt/layer_1_epoch_1_step_40.resume", weights_only=True)
    settings = {**loaded["about"]["training"], "gone": 3, "compile": True}
    del settings["dropout"], settings["tie_embeddings"], settings["predict"]
    config = {name: value for name, value in loaded["about"]["config"].items() if name != "predicts"}
    about = {**loaded["about"], "training": settings, "config": config}
    torch.save({**loaded, "about": about}, place / "old.resume")
    said = runs.finish(place, "--ckpt_dir ckpt --resume . --tie_embeddings --max_steps 41", expect=2)
    assert "--tie_embeddings True contradicts" in said, "of two tables, one would be lost"
    runs.finish(place, "--ckpt_dir ckpt --resume . --compile False --eval_every 1000 --max_steps 41")
    said = (place / "said").read_text()
    assert "settings that this program does not know: gone; passed over" in said
    assert "--compile False (was True)" in said
    assert (place / "ckpt/layer_1_epoch_1_step_41.pt").exists()


def test_a_new_run_tells_what_it_replaces(place):
    for expected in (False, True):
        runs.finish(place, RUN + "--max_steps 2 --eval_every 1000")
        assert ("ckpt holds checkpoints of an earlier run" in (place / "said").read_text()) == expected


def test_one_folder_is_of_one_run(place, undisturbed):
    process = runs.start(place, RUN)
    runs.wait_for_step(place / "log.jsonl", 1, process)
    (place / "second").mkdir()
    runs.finish(place / "second", RUN.replace("../", "../../").replace(" ckpt ", " ../ckpt "), expect=2)
    assert "another run is writing its checkpoints to ../ckpt" in (place / "second/said").read_text()
    process.kill()
    process.join()


# Starting from weights, and ending early

FINE_TUNE = "--data_path ../pt --eval_path ../ev --eval_every 2 --batch_size 8 --device cpu --log_file log.jsonl "
FINE_TUNE += "--ckpt_dir ckpt --save_every 3 --lr 1e-3 --init_from "
WEIGHTS = "../undisturbed/ckpt/layer_1_epoch_1.pt "


def evaluations(folder):
    return [(found["step"], found["eval_loss"]) for found in runs.records(folder / "log.jsonl") if "eval_loss" in found]


def test_a_run_starts_from_the_weights_of_another(place, undisturbed):
    """Its sizes, a new optimizer, and step 0; the weights as they were may be the best."""
    said = runs.finish(place, FINE_TUNE + WEIGHTS + "--max_steps 4 --lr 0.3")
    assert [step for step, _ in evaluations(place)] == [0, 2, 4]
    assert evaluations(place)[0][1] == evaluations(undisturbed)[-1][1] < evaluations(place)[1][1]
    assert runs.same(place / "ckpt/layer_1_best.pt", undisturbed / "ckpt/layer_1_epoch_1.pt")
    assert said.splitlines()[-2].startswith("lowest loss on ../ev: ") and said.endswith(
        "\nbest: ckpt/layer_1_best.pt\n"
    )
    metadata = json.loads((place / "ckpt/layer_1_epoch_0_step_4.json").read_text())
    assert metadata["step"] == 4 and metadata["config"]["layers"] == 1 and metadata["training"]["width"] == 64
    known = content(undisturbed / "ckpt/layer_1_epoch_1.pt")
    path = (FINE_TUNE + WEIGHTS).split("--init_from ")[1].split()[0]
    assert metadata["init_from"] == {"name": "layer_1_epoch_1.pt", "path": path, "content": [known]}
    steps = torch.load(place / "ckpt/layer_1_epoch_0_step_4.resume", weights_only=True)["optimizer"]["state"]
    assert {int(moments["step"]) for moments in steps.values()} == {4}


def test_a_refit_repeats_the_steps_of_the_best_weights(place, undisturbed):
    """On the same data it gives the same weights, bit by bit; the weights it was started from must be the same."""
    flags = FINE_TUNE.removesuffix("--init_from ") + "--tf_layer 1 --width 64 --max_steps 6"
    runs.finish(place, flags)
    best = json.loads((place / "ckpt/layer_1_best.json").read_text())
    assert best["step"] > 0
    refit = "--refit_of ckpt/layer_1_best.pt --data_path ../pt --device cpu --ckpt_dir again"
    runs.finish(place, refit)
    made = place / f"again/layer_1_epoch_0_step_{best['step']}.pt"
    assert runs.same(made, place / "ckpt/layer_1_best.pt")
    noted = json.loads(made.with_suffix(".json").read_text())
    assert noted["refit_of"]["content"] == [content(place / "ckpt/layer_1_best.pt")]
    assert noted["training"]["eval_every"] is None and noted["training"]["lr"] == 1e-3
    said = runs.finish(place, f"{refit} --init_from {WEIGHTS}", expect=2)
    assert "was started from drawn weights: give the same --init_from, or none" in said
    (place / "ckpt/layer_1_best.json").unlink()
    assert "does not say how it was trained" in runs.finish(place, refit, expect=2)


def test_a_refit_is_refused_where_its_steps_would_be_others(place, undisturbed):
    """Other codes, other targets than those that have chosen the weights, or other processes; all by its JSON."""
    shutil.copytree(place / "../undisturbed/ckpt", place / "ckpt")
    shutil.copytree(place / "../pt", place / "pt")
    note, known = place / "ckpt/layer_1_best.json", json.loads((undisturbed / "ckpt/layer_1_best.json").read_text())
    refit = "--refit_of ckpt/layer_1_best.pt --data_path pt --device cpu --log_file log.jsonl --ckpt_dir "
    (place / "pt/token_id_list.json").write_text('{"tokenizer": "mine"}')
    (place / "pt/dataset.json").write_text('{"targets_of": "mine"}')
    changes = [
        ({"tokenizer": "other"}, "codes of tokenizer other"),
        ({"held_out": ["other"]}, "chosen on other targets"),
    ]
    changes += [({"processes": 2}, "was trained by 2 process(es), and here are 1")]
    changes += [
        (change, "does not say how it was trained") for change in ({"step": -3}, {"init_from": 3}, {"config": []})
    ]
    for change, said in changes:
        note.write_text(json.dumps({**known, "held_out": ["mine"], **change}))
        assert said in runs.finish(place, refit + "again", expect=2)
    note.write_text(json.dumps(known))
    assert "is in --ckpt_dir, where this run may replace it" in runs.finish(place, refit + "ckpt", expect=2)
    flags = FINE_TUNE + "ckpt/layer_1_best.pt"
    assert "is in --ckpt_dir, where this run may replace it" in runs.finish(place, flags, expect=2)


def test_targets_that_training_has_seen_judge_nothing(place, data):
    shutil.copytree(data / "pt", place / "whole")
    seen = {"targets_of": content(data / "ev/eval.pkl")}
    (place / "whole/dataset.json").write_text(json.dumps(seen))
    said = runs.finish(place, RUN.replace("../pt", "whole"), expect=2)
    assert "whole has the targets of ../ev: training would see what it is judged by" in said
    runs.finish(place, MODEL.replace("../pt", "whole") + "--max_steps 1")
    said = runs.finish(place, FINE_TUNE.replace(" ckpt ", " again ") + "ckpt/layer_1_epoch_0_step_1.pt", expect=2)
    assert "was trained on the targets of ../ev, which would judge it" in said


def test_checkpoints_say_which_lists_they_have_seen_to_the_end(place, data):
    """And so do those that start from them, on other data, and go on."""
    shutil.copytree(data / "pt", place / "whole")
    (place / "whole/dataset.json").write_text('{"whole_lists_of": ["b", "a"]}')
    runs.finish(place, MODEL.replace("../pt", "whole") + "--max_steps 1")
    start = MODEL.replace(" ckpt ", " more ") + "--max_steps 1 --init_from ckpt/layer_1_epoch_0_step_1.pt "
    runs.finish(place, start)
    runs.finish(place, "--ckpt_dir more --resume --max_steps 2")
    for name in ("ckpt/layer_1_epoch_0_step_1", "more/layer_1_epoch_0_step_1", "more/layer_1_epoch_0_step_2"):
        assert json.loads((place / f"{name}.json").read_text())["whole_lists_of"] == ["a", "b"], name


def test_the_best_weights_by_ndcg(place, undisturbed):
    """NDCG@10 as of brute force over the catalog, and the loss of the same targets; --resume goes on with it."""
    flags = (
        "--data_path ../pt --batch_size 8 --device cpu --log_file log.jsonl --ckpt_dir ckpt --tf_layer 1 --width 64 "
    )
    flags += "--lr 1e-3 --eval_every 3 --best_by ndcg "
    assert "does not say that it has such" in runs.finish(place, flags + "--eval_path ../ev --max_steps 3", expect=2)
    shutil.copytree(place / "../ev", place / "last")
    (place / "last/dataset.json").write_text('{"targets": "last"}')
    shutil.copytree(place / "last", place / "of_others")
    dump(place / "of_others/token_id_list_eval.pkl", [[15_359] * 4] * runs.ITEMS)
    assert "of_others has others" in runs.finish(place, flags + "--eval_path of_others --max_steps 3", expect=2)
    said = runs.finish(place, flags + "--eval_path last --max_steps 12")
    logged = [one for one in runs.records(place / "log.jsonl") if "eval_ndcg" in one]
    assert [one["step"] for one in logged] == [3, 6, 9, 12]
    best = json.loads((place / "ckpt/layer_1_best.json").read_text())
    assert best["best"]["eval_ndcg"] == best["eval_ndcg"]
    assert best["eval_ndcg"] == pytest.approx(max(one["eval_ndcg"] for one in logged), abs=1e-5)
    assert f"highest NDCG@10 on last: {best['eval_ndcg']:.4f}, after step {best['step']}" in said

    found = ndcg_by_hand(place, place / "ckpt/layer_1_best.pt", exclude_history=False)
    assert (best["eval_ndcg"], best["eval_loss"]) == pytest.approx(found, abs=1e-5)
    diverging = flags.replace("--lr 1e-3 --eval_every 3", "--lr 1e38 --eval_every 1") + "--ckpt_dir diverged "
    for predicted in ("codes", "items"):
        said = runs.finish(place, diverging + f"--eval_path last --max_steps 12 --predict {predicted}", expect=2)
        assert "the loss on last is nan after step 1. Lower --lr" in said
    runs.finish(place, "--ckpt_dir ckpt --resume --max_steps 15")
    assert [one["step"] for one in runs.records(place / "log.jsonl") if "eval_ndcg" in one][-1] == 15


def ndcg_by_hand(place, checkpoint, exclude_history):
    """NDCG@10 of the last items of place/last, and their loss, from the scores of all items of the training data."""
    model, _ = load_model(checkpoint, torch.device("cpu"))
    held_out, codes = load_eval(place / "last"), load_pre_train(place / "../pt").catalog.codes.astype(np.int64)
    histories, targets = held_out.sequences.split_targets()
    user, batch = np.arange(len(targets)), make_batch(histories, held_out.catalog)
    if model.config.predicts == "items":
        items = load_pre_train(place / "../pt").catalog
        with torch.no_grad():
            own, scores = (
                (model.next_item(batch) @ model.item_vectors(Items(catalog)).T).numpy()
                for catalog in (held_out.catalog, items)
            )
        shift = np.log(np.exp(scores).sum(1, keepdims=True))
        own, scores = (own - shift)[user, targets], scores - shift
    else:
        with torch.no_grad():
            log_probs = model.next_item_logits(batch).log_softmax(-1).numpy()
        wanted = held_out.catalog.codes_of(targets).numpy()
        scores = sum(log_probs[:, slot, codes[:, slot]] for slot in range(4))  # (B, N)
        own = sum(log_probs[user, slot, wanted[:, slot]] for slot in range(4))
    new = np.ones(len(targets), dtype=bool)
    if exclude_history:
        by_codes = {tuple(code): item for item, code in enumerate(codes.tolist())}
        known = [by_codes[tuple(code)] for code in held_out.catalog.codes.tolist()]  # of the training data
        for row, items in enumerate(histories.lists()):
            scores[row, [known[item] for item in items]] = -np.inf
            new[row] = targets[row] not in items
    above, tied = (scores > own[:, None] + 1e-5).sum(1), (abs(scores - own[:, None]) <= 1e-5).sum(1)
    gains = [
        sum(1 / math.log2(rank + 2) for rank in range(first, min(first + ties, 10))) / ties
        for first, ties in zip(above[new].tolist(), tied[new].tolist(), strict=True)
    ]
    return np.mean(gains), -own[new].mean() / 4


@pytest.mark.parametrize("predicted", ["codes", "items"])
def test_the_best_weights_by_ndcg_of_new_items(place, data, predicted):
    """Items of the history are no candidates, and a last item that is one is no target; two processes agree."""
    shutil.copytree(place / "../ev", place / "last")
    (place / "last/dataset.json").write_text('{"targets": "last"}')
    flags = MODEL + "--batch_size 8 --eval_path last --eval_every 20 --max_steps 40 --dropout 0 --exclude_history "
    flags += f"--predict {predicted} "
    assert "Give --best_by ndcg, too" in runs.finish(place, flags, expect=2)
    runs.finish(place, flags + "--best_by ndcg")
    best = json.loads((place / "ckpt/layer_1_best.json").read_text())
    found = ndcg_by_hand(place, place / "ckpt/layer_1_best.pt", exclude_history=True)
    assert (best["eval_ndcg"], best["eval_loss"]) == pytest.approx(found, abs=1e-5)
    plain = ndcg_by_hand(place, place / "ckpt/layer_1_best.pt", exclude_history=False)
    assert abs(plain[0] - found[0]) > 1e-4, "the histories have items that are scored high"
    two = flags.replace("--batch_size 8", "--batch_size 4").replace("ckpt_dir ckpt", "ckpt_dir two")
    runs.finish_two(place, two + "--best_by ndcg")
    again = json.loads((place / "two/layer_1_best.json").read_text())
    assert again["eval_ndcg"] == pytest.approx(best["eval_ndcg"], abs=1e-3)

    held_out = load_eval(place / "last").sequences.lists()
    dump(place / "last/eval.pkl", {user: [*items[:-1], items[0]] for user, items in enumerate(held_out)})
    assert "every last item of last is in its own history" in runs.finish(place, flags + "--best_by ndcg", expect=2)


def test_a_run_from_weights_resumes_without_them(place, undisturbed):
    """Given as zip parts, as in the release, and removed: the resumed state has all that is needed."""
    with zipfile.ZipFile(place / "all.zip", "w") as archive:
        archive.write(undisturbed / "ckpt/layer_1_epoch_1.pt", "w.pt")
    zipped = (place / "all.zip").read_bytes()
    for number, part in enumerate(("aa", "ab")):
        (place / f"w.pt.zip.part{part}").write_bytes(zipped[number * 5000 :][: None if number else 5000])
    runs.finish(place, FINE_TUNE.replace(" ckpt ", " whole ") + "w.pt --max_steps 8")
    runs.finish(place, FINE_TUNE + "w.pt --max_steps 5")
    for part in place.glob("w.pt*"):
        part.unlink()
    runs.finish(place, "--ckpt_dir ckpt --resume --max_steps 7")
    said = runs.finish(place, "--ckpt_dir ckpt --resume auto --init_from w.pt --max_steps 8")
    assert "--init_from w.pt is not read: the run has weights of its own" in said
    assert runs.same(place / "ckpt/layer_1_epoch_0_step_8.pt", place / "whole/layer_1_epoch_0_step_8.pt")
    for name in ("ckpt/layer_1_epoch_0_step_8.json", "whole/layer_1_epoch_0_step_8.json"):
        note = json.loads((place / name).read_text())["init_from"]
        assert note["name"] == "w.pt" and len(note["content"]) == 2
    assert [step for step, _ in evaluations(place)].count(0) == 2, "once for each of the two runs"


def test_minutes_end_a_run_and_another_start_has_minutes_of_its_own(place, undisturbed):
    for step in (1, 2):
        said = runs.finish(place, RUN + "--minutes 1e-5" if step == 1 else "--ckpt_dir ckpt --resume --minutes 1e-5")
        assert "at most 42 steps" in said and f"finished {step} steps after --minutes 1e-05, last loss" in said
        assert (place / f"ckpt/layer_1_epoch_0_step_{step}.resume").exists()
    assert [step for step, _ in evaluations(place)] == [1, 2], "the last step is evaluated"
    said = runs.finish(place, "--ckpt_dir ckpt --resume --max_steps 8")
    assert "at most" not in said, "minutes are of one start"
    assert runs.same(place / "ckpt/layer_1_epoch_0_step_8.pt", undisturbed / "ckpt/layer_1_epoch_0_step_8.pt")


def test_patience_ends_a_run_and_is_counted_across_starts(place, undisturbed):
    flags = FINE_TUNE + WEIGHTS + "--lr 0.3 --patience 3 "  # at which no evaluation is as good as the first
    said = runs.finish(place, flags + "--epoch 100")
    assert "finished 6 steps after 3 evaluations in a row without a better one" in said
    assert [step for step, _ in evaluations(place)] == [0, 2, 4, 6]
    said = runs.finish(place, flags.replace(" ckpt ", " again ") + "--max_steps 4")
    assert "finished 4 steps, last loss" in said
    assert "finished 6 steps after 3" in runs.finish(place, "--ckpt_dir again --resume --max_steps 40")
    assert runs.same(place / "again/layer_1_epoch_0_step_6.pt", place / "ckpt/layer_1_epoch_0_step_6.pt")
    said = runs.finish(place, "--ckpt_dir again --resume")
    assert "nothing to do: 6 steps were taken, and training ended after 3 evaluations in a row" in said
    assert said.endswith("\nbest: again/layer_1_best.pt\n")
    assert "finished 8 steps after 4" in runs.finish(place, "--ckpt_dir again --resume --patience 4")


def test_processes_end_at_the_same_step(place, undisturbed):
    """From weights; at the end of --minutes, and of --patience."""
    flags = FINE_TUNE.replace("--batch_size 8", "--batch_size 4") + WEIGHTS
    runs.finish_two(place, flags + "--minutes 1e-5")
    assert "finished 1 steps after --minutes 1e-05" in (place / "said").read_text()
    runs.finish_two(place, flags + "--lr 0.3 --patience 2")
    assert "finished 4 steps after 2 evaluations in a row" in (place / "said").read_text()
    assert runs.same(place / "ckpt/layer_1_best.pt", undisturbed / "ckpt/layer_1_epoch_1.pt")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--patience 3", ("--patience counts evaluations", "Give --eval_every")),
        ("--init_from ckpt/layer_1_epoch_1.pt --tf_layer 3", ("--tf_layer 3 contradicts", "has 1", "--init_from")),
        ("--init_from ckpt/layer_1_epoch_1.pt --width 768", ("--width 768 contradicts", "has 64", "--init_from")),
        ("--init_from ckpt/layer_1_epoch_1.pt --heads 4", ("--heads 4 contradicts", "has 1", "--init_from")),
        ("--init_from ckpt/layer_1_epoch_1.pt --tie_embeddings", ("--tie_embeddings True contradicts", "has False")),
        ("--init_from ckpt/nothing.pt", ("ckpt/nothing.pt does not exist", "--init_from")),
        ("--init_from ckpt", ("ckpt is a directory",)),
        ("--init_from=", ("is a directory",)),
    ],
)
def test_bad_starts_are_told_before_work(place, undisturbed, monkeypatch, capsys, flags, said):
    refused(
        place, undisturbed, monkeypatch, capsys, f"--data_path ../nowhere --ckpt_dir {place / 'new'} {flags}", *said
    )
    assert not (place / "new").exists()


def test_weights_of_other_codes_or_texts_are_refused(data, place, undisturbed):
    shutil.copytree(data / "pt", place / "pt", ignore=shutil.ignore_patterns("packed"))
    save_json(place / "pt/token_id_list.json", {"tokenizer": "t"})
    save_json(place / "pt/all_item_text_embeddings.json", {"encoder": "e"})
    shutil.copy(undisturbed / "ckpt/layer_1_epoch_1.pt", place / "w.pt")
    flags = FINE_TUNE.replace("../pt", "pt") + "w.pt --max_steps 1"
    for known, expect, words in (
        ({}, 0, "finished 1 steps"),
        ({"tokenizer": "t", "encoder": "models/e"}, 0, "finished 1 steps"),
        ({"tokenizer": "other"}, 2, "w.pt was trained on codes of tokenizer other, those of pt are of t"),
        ({"encoder": "other"}, 2, "w.pt was trained on embeddings of the encoder other, pt has those of e"),
        ({"encoder": "e, whitened"}, 2, "w.pt was trained on whitened embeddings, those of pt are plain"),
    ):
        save_json(place / "w.json", known)
        assert words in runs.finish(place, flags, expect)
    np.save(place / "pt/all_item_text_embeddings.npy", np.zeros((runs.ITEMS, 64), dtype=np.float32))
    assert "pt is 64 wide, w.pt was trained on embeddings 32 wide" in runs.finish(place, flags, expect=2)


def test_a_held_out_set_whose_last_items_are_the_targets(data, place, undisturbed):
    """The same loss as of the plain set where every history has two items, and another where they are longer."""
    model, _ = load_model(undisturbed / "ckpt/layer_1_epoch_1.pt", torch.device("cpu"))

    def losses_of(**notes):
        save_json(place / "ev/dataset.json", notes)
        return [evaluate(model, load_eval(place / "ev"), size, None) for size in (3, 64)]

    shutil.copytree(data / "ev", place / "ev")
    with pytest.raises(InputError, match='"targets" is 5, expected "last" or nothing'):
        losses_of(targets=5)
    every, last = losses_of(), losses_of(targets="last")
    assert last[0].loss == pytest.approx(last[1].loss, rel=1e-6) and abs(last[0].loss - every[0].loss) > 1e-3
    flags = RUN.replace("../ev", "ev") + "--max_steps 1 --eval_every 1"
    runs.finish(place, flags)
    held_out = json.loads((place / "ckpt/layer_1_best.json").read_text())["held_out"]
    assert held_out[-1] == "last" and len(held_out) == 5
    short = {user: items[-2:] for user, items in pickle.loads((data / "ev/eval.pkl").read_bytes()).items()}  # noqa: S301
    dump(place / "ev/eval.pkl", short)
    for plain, only_last in zip(losses_of(), losses_of(targets="last"), strict=True):
        assert only_last[:2] == pytest.approx(plain[:2], rel=1e-6)


# Several processes


def losses(folder):
    return {record["step"]: record["loss"] for record in runs.records(folder / "log.jsonl") if "loss" in record}


def test_processes_and_accumulation_give_the_loss_of_one_large_batch(data, place):
    """Histories left over at the end of an epoch included; evaluation, clipping and every checkpoint too."""
    common = MODEL + "--epoch 2 --dropout 0 --save_every 1 --eval_every 6 --eval_path ../ev --max_grad_norm 0.5 "
    ways = {
        "one": (runs.finish, "--batch_size 8"),
        "accumulated": (runs.finish, "--batch_size 3 --gradient_accumulation_steps 3"),
        "nine": (runs.finish, "--batch_size 9"),
        "two": (runs.finish_two, "--batch_size 4"),
        "two_accumulated": (runs.finish_two, "--batch_size 2 --gradient_accumulation_steps 2 --gradient_checkpointing"),
    }
    for name, (finish, flags) in ways.items():
        (place / name).mkdir()
        finish(place / name, (common + flags).replace("../", "../../"))
    for reference, same in (("one", ("two", "two_accumulated")), ("nine", ("accumulated",))):
        expected = losses(place / reference)
        assert len(expected) == 2 * math.ceil(HISTORIES / (8 if reference == "one" else 9))
        for name in same:
            assert losses(place / name) == pytest.approx(expected, rel=1e-5), name
            best = [
                json.loads((place / way / "ckpt/layer_1_best.json").read_text())["eval_loss"]
                for way in (reference, name)
            ]
            assert best[0] == pytest.approx(best[1], rel=1e-5)


def whole_in_parts_and_by_two(place, common, by_two):
    """Train 20 steps at once, in two parts, which must give the same weights, and by two; the name of these weights."""
    for name, finish, flags in (
        ("whole", runs.finish, common + "--batch_size 8 --max_steps 20"),
        ("parts", runs.finish, common + "--batch_size 8 --max_steps 7"),
        ("parts", runs.finish, "--resume --ckpt_dir ckpt --max_steps 20"),
        ("two", runs.finish_two, common + "--batch_size 4 " + by_two),
    ):
        (place / name).mkdir(exist_ok=True)
        finish(place / name, flags.replace("../", "../../"))
    last = "ckpt/layer_1_epoch_0_step_20.pt"
    assert runs.same(place / "whole" / last, place / "parts" / last)
    return last


def test_one_table_for_embedding_and_head(data, place, undisturbed):
    """It is saved under both names, goes on bit by bit and by two, and is kept by what starts from it."""
    common = MODEL + "--epoch 1 --tie_embeddings --dropout 0 --eval_every 7 --eval_path ../ev "
    last = whole_in_parts_and_by_two(place, common, by_two="--max_steps 20")
    assert losses(place / "two") == pytest.approx(losses(place / "whole"), rel=1e-5)
    weights = runs.weights(place / "whole" / last)
    assert torch.equal(weights["gpt2model.wte.weight"], weights["pred_head.weight"])
    assert weights.keys() == runs.weights(undisturbed / "ckpt/layer_1_epoch_1.pt").keys()

    start = MODEL + f"--batch_size 8 --max_steps 3 --ckpt_dir more --init_from whole/{last} "
    said = runs.finish(place, start + "--tie_embeddings False", expect=2)
    assert "--tie_embeddings False contradicts" in said and "which has True" in said
    runs.finish(place, start)
    weights = runs.weights(place / "more/layer_1_epoch_0_step_3.pt")
    assert torch.equal(weights["gpt2model.wte.weight"], weights["pred_head.weight"])


def test_predicting_items_goes_on_bit_by_bit_and_by_two(data, place, undisturbed):
    """A process with nothing left to read keeps up with the other; checkpoints have no head for codes."""
    common = MODEL + "--epoch 1 --predict items --dropout 0 "
    last = whole_in_parts_and_by_two(place, common, by_two="")
    found, expected = losses(place / "two"), losses(place / "whole")
    assert max(found) == math.ceil(HISTORIES / 8)
    shared = found.keys() & expected.keys()
    assert shared and {step: found[step] for step in shared} == pytest.approx(
        {step: expected[step] for step in shared}, rel=1e-5
    )
    weights = runs.weights(place / "whole" / last)
    assert runs.weights(undisturbed / "ckpt/layer_1_epoch_1.pt").keys() - weights.keys() == {"pred_head.weight"}
    for flags, said in (
        ("--tie_embeddings", "--predict items has no table of its own"),
        ("--eval_every 3 --eval_path ../ev", "Give --best_by ndcg, too"),
        (f"--predict codes --init_from whole/{last}", "--predict codes contradicts"),
    ):
        assert said in runs.finish(place, f"{common} --batch_size 8 {flags}", expect=2)
    said = runs.finish(place, f"--ckpt_path whole/{last} --data_path ../ev --device cpu", expect=2, script="eval")
    assert f"whole/{last} is left out" in said and "no checkpoint predicts codes" in said
    counts = np.unique(load_pre_train(data / "pt").sequences.items, return_counts=True)[1]
    guess = -np.sum(counts / counts.sum() * np.log(counts / counts.sum())) / 4
    assert f"from item frequencies has a loss of {guess:.3f} nats" in (place / "whole/said").read_text()

    said = runs.finish(place, f"--input whole/{last} --output exported.pt", expect=2, script="export")
    assert "has predicts items, and the published program knows only codes" in said
    for name in ("ev_negative", "ev_others"):  # ids that count from the end; other texts under the same codes
        shutil.copytree(data / "ev", place / name)
        (place / name / "dataset.json").write_text('{"targets": "last"}')
    lists, codes = (load_pickle(data / "ev" / HELD_OUT[number], kind, "") for number, kind in enumerate((dict, list)))
    below = range(-runs.ITEMS, 0)
    dump(place / "ev_negative/eval.pkl", {user: [item - runs.ITEMS for item in items] for user, items in lists.items()})
    dump(place / "ev_negative/token_id_list_eval.pkl", dict(zip(below, codes, strict=True)))
    dump(place / "ev_negative/eval_id_map.pkl", {item: item + runs.ITEMS for item in below})
    matrix = np.load(data / "ev/all_item_text_embeddings_eval.npy")
    np.save(place / "ev_others/all_item_text_embeddings_eval.npy", matrix[::-1])
    for name in ("ev_negative", "ev_others"):
        said = runs.finish(place, f"{common} --batch_size 8 --eval_every 3 --best_by ndcg --eval_path {name}", expect=2)
        assert f"{name} has others" in said

    beside = place / "whole" / last.replace(".pt", ".json")
    noted = json.loads(beside.read_text())
    for odd in ("codes", "spam"):
        beside.write_text(json.dumps({**noted, "training": {**noted["training"], "predict": odd}}))
        said = runs.finish(place, f"--refit_of whole/{last} --data_path ../pt --ckpt_dir again", expect=2)
        assert f"predicts of the model is 'items', and its training had --predict '{odd}'" in said
    for flags in ({"attention": "causal"}, {"no_auxiliary": True}):
        beside.write_text(json.dumps({**noted, "training": {**noted["training"], **flags}}))
        said = runs.finish(place, f"--refit_of whole/{last} --data_path ../pt --ckpt_dir again", expect=2)
        assert f"its training had --{next(iter(flags))}" in said
    beside.write_text(json.dumps(noted))

    start = MODEL + "--batch_size 8 --max_steps 3 --ckpt_dir more --init_from "
    for flags in (f"whole/{last}", f"{undisturbed}/ckpt/layer_1_epoch_1.pt --predict items"):  # of codes, too
        runs.finish(place, start + flags)
        assert "pred_head.weight" not in runs.weights(place / "more/layer_1_epoch_0_step_3.pt")


def test_another_number_of_processes_goes_on(place):
    """Two processes, told to stop as a cluster does; then one, then two again: the losses of one run."""
    flags = MODEL + "--epoch 2 --dropout 0 --save_every 1 --schedule cosine --warmup 0.1 "
    (place / "one").mkdir()
    runs.finish(place / "one", (flags + "--batch_size 8").replace("../", "../../"))
    process = runs.two(place, flags + "--batch_size 4")
    runs.wait_for_step(place / "log.jsonl", 5, process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert "told to stop (SIGTERM)" in (place / "said").read_text()
    reached = max(losses(place))
    assert 5 <= reached < 21
    runs.finish(place, f"--ckpt_dir ckpt --resume --batch_size 8 --max_steps {reached + 15}")
    runs.finish_two(place, "--ckpt_dir ckpt --resume --batch_size 4 --max_steps 1000")
    found, expected = losses(place), losses(place / "one")
    first = {step: loss for step, loss in expected.items() if step <= reached}
    assert {step: found[step] for step in first} == pytest.approx(first, rel=1e-5)
    assert len(found) == len(expected) == 42
    processes = [record["processes"] for record in runs.records(place / "log.jsonl") if "start" in record]
    assert processes == [2, 1, 2]


@pytest.mark.parametrize("tables", ["", "--tie_embeddings", "--predict items"])
def test_a_sharded_model_saves_and_resumes_whole(data, place, tables):
    """What --fsdp does: the same weights as one process has, from checkpoints that anything else reads."""
    flags = MODEL + f"{tables} " + "--epoch 1 --dropout 0 --batch_size {} --max_grad_norm 0.5 --save_every 3"
    (place / "one").mkdir()
    runs.finish(place / "one", flags.format(8).replace("../", "../../"))
    runs.finish_two(place, flags.format(4), script="tests/sharded.py")
    expected = runs.weights(place / "one/ckpt/layer_1_epoch_0_step_6.pt")
    for name in ("b.pt", "c.pt"):
        ours = runs.weights(place / "ckpt" / name)
        assert list(ours) == list(expected)
        for key, value in expected.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-4)
    assert runs.same(place / "ckpt/b.pt", place / "ckpt/c.pt")


@pytest.mark.parametrize(
    ("name", "theirs", "said"),
    [
        ("--epoch", 3, "--epoch is 2 in process 0 and 3 in process 1"),
        ("held_out", ["x"], "held_out is ['h'] in process 0 and ['x'] in process 1"),
        ("init_from", {"name": "w.pt"}, "init_from is None in process 0 and {'name': 'w.pt'} in process 1"),
        ("epoch to begin at", 1, "epoch to begin at is 0 in process 0 and 1 in process 1"),
    ],
)
def test_processes_with_other_work_stop(monkeypatch, name, theirs, said):
    monkeypatch.setattr(processes, "gather_object", lambda own: [*own, {**own[0], name: theirs}])
    run_metadata = {"training": {"epoch": 2, "log_file": "l"}, "data": "d", "held_out": ["h"]}
    with pytest.raises(InputError, match=re.escape(said)):
        processes.check_same_start(Namespace(process_index=0), Progress(), run_metadata)


def test_processes_that_do_not_know_of_each_other_stop(place, data):
    runs.finish(place, MODEL.replace("--device cpu", ""), expect=2, hurt=UnderLauncher())
    assert "2 processes were started (WORLD_SIZE), accelerate found 1" in (place / "said").read_text()


class UnderLauncher:
    """As one of two processes of a launcher that accelerate does not recognise, because no GPU is there."""

    def __call__(self):
        os.environ["WORLD_SIZE"] = "2"


def test_a_process_whose_data_are_bad_ends_all(data, place):
    """NaN in the share of one process: both end, with its message and a nonzero exit code."""
    (data / "nan/pt").mkdir(parents=True)
    for path in (data / "pt").glob("*.pkl"):
        (data / "nan/pt" / path.name).write_bytes(path.read_bytes())
    matrix = np.load(data / "pt/all_item_text_embeddings.npy")
    matrix[0] = np.nan
    np.save(data / "nan/pt/all_item_text_embeddings.npy", matrix)
    runs.finish_two(place, MODEL.replace("../pt", "../nan/pt"), expect=1)
    said = (place / "said").read_text()
    assert "row 0: the embedding holds NaN" in said and "Error: " not in said.replace("ChildFailedError: ", "")


# Optimisation


def plan_of(data, process=0, processes=1, **flags):
    settings = Settings(**{"batch_size": 8, "epoch": 2, "lr": 1.0, **flags})
    return Plan(load_pre_train(data / "pt"), settings, 256, process, processes)


@pytest.mark.parametrize("tokens", [None, 1024])
def test_a_plan_begins_anywhere(data, tokens):
    plan = plan_of(data, tokens_per_batch=tokens)
    whole = list(plan.steps(Progress()))
    assert len(whole) == plan.total_steps(Progress()) == whole[-1].progress.step
    for step in whole[::5]:
        rest = list(plan.steps(step.progress))
        expected = whole[step.progress.step :]
        assert [other.progress for other in rest] == [other.progress for other in expected]
        assert all(np.array_equal(one.rows, other.rows) for one, other in zip(rest, expected, strict=True))
        assert plan.total_steps(step.progress) == len(whole)
    for epoch in (0, 1):
        seen = np.concatenate([step.rows for step in whole if step.progress.epoch == epoch])
        assert sorted(seen) == list(range(HISTORIES))


@pytest.mark.parametrize("passes", [1, 2])
def test_processes_share_a_step_out(data, passes):
    """Every target of a step is read by one process, in one batch; all processes take equally many passes."""
    plans = [plan_of(data, number, 5, batch_size=2, gradient_accumulation_steps=passes) for number in range(5)]

    def counted(batches):
        slots = [torch.cat((batch.codes, batch.targets), 1)[batch.targets[:, 0] != IGNORED] for batch in batches]
        return sorted(torch.cat(slots).tolist())

    for steps in zip(*(plan.steps(Progress()) for plan in plans), strict=True):
        rows = steps[0].rows
        assert all(np.array_equal(step.rows, rows) and step.progress == steps[0].progress for step in steps)
        assert len({len(step.batches) for step in steps}) == 1 and len(steps[0].batches) <= passes
        whole = training_batch(plans[0].data.sequences.select(rows), plans[0].data.catalog)
        assert counted(batch for step in steps for batch in step.batches) == counted([whole])
    assert len(rows) == 1, "the last step has one history for five processes"


def test_learning_rates(data):
    def rates(**flags):
        plan = plan_of(data, **flags)
        return [plan.learning_rate(step) for step in plan.steps(Progress())]

    assert set(rates()) == {1.0}
    rising = rates(warmup=0.5)
    assert rising[:21] == sorted(rising[:21]) and rising[0] < 0.05 and set(rising[21:]) == {1.0}
    cosine = rates(schedule="cosine", max_steps=40)
    assert cosine == pytest.approx([(1 + math.cos(math.pi * (step + 0.5) / 40)) / 2 for step in range(40)], abs=5e-3)
    both = rates(schedule="cosine", warmup=0.25)
    assert max(both) > 0.99 and both.index(max(both)) in (9, 10, 11) and both[-1] < 0.01
    # Half as many steps by twice as many processes: the same rates at the same histories.
    plan = plan_of(data, schedule="cosine", warmup=0.25, batch_size=16)
    twice = [plan.learning_rate(step) for step in plan.steps(Progress())]
    assert twice[3] == pytest.approx((both[6] + both[7]) / 2, abs=1e-3)


def test_random_numbers_depend_on_seed_step_and_process():
    seeds = {step_seed(seed, step, process) for seed in (0, 1) for step in (1, 2, 3) for process in (0, 1)}
    assert len(seeds) == 12 and step_seed(1, 2, 0) == step_seed(1, 2, 0)


def test_a_loss_that_is_not_finite_names_the_batch():
    unread = [
        (Step(np.arange(step, step + 9), [], Progress(step, 0, step * 9)), 36, torch.tensor(value))
        for step, value in ((11, 3.0), (12, math.nan), (13, math.inf))
    ]
    assert pre_train.read_losses(unread[:1]) == [3.0]
    with pytest.raises(InputError, match=r"nan at step 12 \(epoch 0, histories number 12, 13, 14, 15, 16, …"):
        pre_train.read_losses(unread)


def test_diverged_weights_are_not_written(place, undisturbed):
    """A finite loss whose update is not: the checkpoint before stays, and is whole."""
    runs.finish(place, RUN + "--epoch 1 --eval_every 1000 --save_every 5", expect=2, hurt=OverflowAt(9))
    said = (place / "said").read_text()
    assert "holds NaN or infinity after step" in said and "Traceback" not in said
    assert all(value.isfinite().all() for value in runs.weights(place / "ckpt/layer_1_epoch_0_step_5.pt").values())
    assert find_state(place / "ckpt", "latest").progress.step < 9
    assert not (place / "ckpt/layer_1_epoch_0_step_10.pt").exists()
    assert not list((place / "ckpt").glob(".*"))


class OverflowAt:
    """From this step on the weights are infinite."""

    def __init__(self, step):
        self.step = step

    def __call__(self):
        take, left = pre_train.train_step, [self.step]

        def broken(model, *others):
            loss = take(model, *others)
            left[0] -= 1
            if not left[0]:
                with torch.no_grad():
                    model.norm_seq.bias.fill_(math.inf)
            return loss

        pre_train.train_step = broken


def test_a_full_disk_keeps_the_checkpoints_before(place, data):
    runs.finish(place, RUN + "--eval_every 1000", expect=2, hurt=runs.AtWrite(9, runs.fill_the_disk, on=True))
    said = (place / "said").read_text()
    assert "could not be written (No space left on device)" in said
    assert find_state(place / "ckpt", "latest").progress.step > 0
    assert not list((place / "ckpt").glob(".*"))


# Watching


def test_trackers_and_plots(place, undisturbed, monkeypatch, capsys):
    runs.finish(place, RUN + "--max_steps 12 --log_with tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(place.glob("pre_train/**/events*")).parent)).Reload()
    assert {event.step: event.value for event in events.Scalars("loss")} == pytest.approx(losses(place), rel=1e-5)
    assert [event.step for event in events.Scalars("eval_loss")] == [6, 12]

    monkeypatch.setattr("sys.argv", ["plot_logs", str(undisturbed / "log.jsonl"), "--output", str(place / "p.png")])
    plot_logs.main()
    assert (place / "p.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("sys.argv", ["plot_logs", str(undisturbed / "log.jsonl"), "--output", str(place / "p.odd")])
    with pytest.raises(InputError, match="expected a name that ends in"):
        plot_logs.main()


def test_a_log_is_read_as_the_run_went(place):
    def log(*lines):
        (place / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return [(record["step"], record["loss"]) for record in plot_logs.read_run(place / "l.jsonl").records]

    first = [{"step": 0, "start": {}}, {"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0}]
    assert log(*first) == [(10, 3.0), (20, 2.0)]
    assert log(*first, {"step": 10, "start": {}}, {"step": 15, "loss": 2.5}) == [(10, 3.0), (15, 2.5)]
    assert log(*first, {"step": 0, "start": {}}, {"step": 10, "loss": 4.0}) == [(10, 4.0)]
    with pytest.raises(InputError, match="no training loss"):
        log({"step": 0, "start": {}})
    with pytest.raises(InputError, match="line 1: a record without a step"):
        log({"loss": 1.0})


def test_a_half_line_of_a_killed_run_is_cut_off(place, capsys):
    path, whole = place / "l.jsonl", '{"step": 10, "loss": 3.0}\n'
    for left in ("", '{"step": 20, "lo'):
        path.write_text(whole + left)
        with TimeLogger(30, 10, path) as logger:
            logger.log({"loss": 2.0}, 20)
        assert [record["loss"] for record in plot_logs.read_run(path).records] == [3.0, 2.0]
    capsys.readouterr()
    with pytest.raises(OSError, match="Is a directory"):
        TimeLogger(30, 10, place)
    assert "step/s" not in capsys.readouterr().err, "the error stands on a line of its own"
    path.write_text("not a log, and without an end")
    with TimeLogger(30, 10, path):
        assert path.read_text() == "not a log, and without an end"


def test_reports_hold_what_is_watched(undisturbed):
    reports = [record for record in runs.records(undisturbed / "log.jsonl") if "loss" in record]
    assert reports[-1]["step"] == 42 and reports[-1]["epoch"] == 2
    for name in ("lr", "step_s", "histories_per_s", "items_per_s", "tokens_per_s", "tflop_per_s", "peak_memory_gib"):
        assert all(record[name] > 0 for record in reports), name
    assert all(0 <= record[name] < 1 for record in reports for name in ("padding_share", "waiting_share"))
    assert reports[-1]["loss"] < reports[0]["loss"]


def test_a_missing_tracker_is_told_how_to_install(place, data):
    runs.finish(place, MODEL + "--log_with wandb", expect=2)
    said = (place / "said").read_text().splitlines()
    assert said == ["error: --log_with wandb: it is not installed: pip install wandb"]


def test_states_are_written_with_plain_values_only(undisturbed):
    saved = state.read_state(undisturbed / "ckpt/layer_1_epoch_1.resume")
    save_json(undisturbed / "about.json", saved.metadata)  # json takes nothing else
    assert json.loads((undisturbed / "about.json").read_text()) == saved.metadata
