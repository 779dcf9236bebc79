"""Training of the tokenizer that goes on, or must not: the same guards as pre-training has."""

import os
import signal

import numpy as np
import pytest
import torch

import ae_trainer
from tests import runs
from utils.errors import InputError
from utils.whitening import Whitening

STATE = "vae/vae_len4_fsq88865.resume"


@pytest.fixture
def train(tmp_path):
    """train(flags, …): ae_trainer.py on a.npy, two epochs unless the flags say otherwise; returns what it said."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((300, 32), dtype=np.float32))

    def train(flags="", rows="a.npy", epochs="--epoch 2 ", expect=0, **others):
        flags = f"--embeddings {rows} --output vae --device cpu {epochs}{flags}"
        return runs.finish(tmp_path, flags, expect, script="ae_trainer", **others)

    return train


def saved(folder):
    return torch.load(folder / STATE, weights_only=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": "b.npy"}, "was trained on other embeddings than b.npy are now"),
        ({"rows": "a.npy b.npy"}, "was trained on other embeddings than a.npy, b.npy are now"),
        ({"flags": "--seed 7 "}, "--seed 7 contradicts vae/vae_len4_fsq88865.resume, which has 0"),
        ({"flags": "--init plain "}, "--init plain contradicts vae/vae_len4_fsq88865.resume, which has data"),
    ],
)
def test_going_on_must_be_the_same_training(tmp_path, train, change, said):
    train()
    before = (tmp_path / STATE).read_bytes()
    told = train(change.pop("flags", "") + "--resume", **change, expect=2)
    assert said in told.partition("error: ")[2]  # whatever was printed before or behind it
    assert "start without --resume" in told
    assert (tmp_path / STATE).read_bytes() == before


def test_what_is_not_typed_is_as_saved_and_what_is_typed_is_told(tmp_path, train):
    train("--lr 1e-3 --batch_size 100 --seed 5")
    assert "nothing to do: 2 epochs are finished" in train("--resume", epochs="")
    told = train("--resume --lr 0.002", epochs="--epoch 3 ")
    assert (
        "going on from vae/vae_len4_fsq88865.resume, 2 of 3 epochs finished: --epoch 3 (was 2), --lr 0.002 (was 0.001)"
        in told
    )
    state = saved(tmp_path)
    assert state["optimizer"]["param_groups"][0]["lr"] == state["settings"]["lr"] == 0.002
    assert state["settings"]["batch_size"] == 100 and state["settings"]["seed"] == 5 and state["epoch"] == 2


def test_the_same_rows_of_other_files_are_the_same(tmp_path, train):
    train()
    rows = np.load(tmp_path / "a.npy")
    for name, part in (("c", rows[:100]), ("d", rows[100:].astype(np.float64))):
        np.save(tmp_path / f"{name}.npy", part)
    assert "2 of 3 epochs finished" in train("--resume", rows="c.npy d.npy", epochs="--epoch 3 ")


def test_one_folder_is_of_one_training(tmp_path, train):
    flags = "--embeddings a.npy --output vae --device cpu --epoch 100000"
    process = runs.start(tmp_path, flags, script="ae_trainer")
    while not (tmp_path / STATE).exists():
        assert process.exitcode is None
    (tmp_path / "second").mkdir()
    second = flags.replace("a.npy", "../a.npy").replace("vae", "../vae")
    told = runs.finish(tmp_path / "second", second, expect=2, script="ae_trainer")
    assert "another run is writing its checkpoints to ../vae" in told and "give another --output" in told
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_starting_anew_tells_what_it_replaces(train):
    for expected in (False, True):
        assert ("vae_len4_fsq88865.resume is of an earlier training" in train()) == expected


def test_a_state_of_an_earlier_training_never_stands_beside_new_weights(tmp_path, train):
    train("--lr 1e-3")
    train(expect=-signal.SIGKILL, hurt=runs.AtWrite(3, runs.die))  # of JSON, weights and state
    assert not (tmp_path / STATE).exists()
    assert "does not exist" in train("--resume", expect=2)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path, train):
    train()
    before = {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()}
    told = train("--lr 1e30 --resume", epochs="--epoch 20 ", expect=2)
    assert "training has diverged" in told and "--lr" in told.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()} == before


@pytest.mark.parametrize("name", ["settings", "model"])
def test_an_odd_state_is_refused(tmp_path, train, name):
    train()
    torch.save({part: value for part, value in saved(tmp_path).items() if part != name}, tmp_path / STATE)
    told = train("--resume", epochs="--epoch 3 ", expect=2).splitlines()[-1]
    assert "vae/vae_len4_fsq88865.resume" in told and "Start without --resume" in told


def test_a_tokenizer_of_whitened_embeddings_whitens(tmp_path, capsys, monkeypatch):
    """Each file by itself; the note stands among the weights, and the fingerprint tells it from others."""
    generator = np.random.default_rng(0)
    files = [tmp_path / f"{name}.npy" for name in "ab"]
    for number, file in enumerate(files):
        np.save(file, (generator.normal(size=(60, 32)) @ generator.normal(size=(32, 32)) + number).astype("f4"))
    command = ["ae_trainer.py", "--embeddings", *map(str, files), "--epoch", "1", "--device", "cpu", "--whiten"]
    monkeypatch.setattr("sys.argv", [*command, "--output", str(tmp_path / "vae")])
    ae_trainer.main()
    tokenizer = ae_trainer.load_tokenizer(tmp_path / "vae/vae_len4_fsq88865_ep0.pt")
    assert tokenizer.whitens and tokenizer.prepared_encoder("X") == "X, whitened"
    embeddings = np.load(files[0])
    white = Whitening.of(embeddings)(embeddings)
    np.testing.assert_array_equal(tokenizer.prepare(embeddings)[10:20], white[10:20])
    np.testing.assert_array_equal(tokenizer.tokenize(tokenizer.prepare(embeddings)), tokenizer.tokenize(white))
    plain = ae_trainer.AutoEncoder(32)
    plain.load_state_dict({name: value for name, value in tokenizer.state_dict().items() if name != ae_trainer.WHITENS})
    files[0].with_suffix(".json").write_text('{"whitened": true}')
    with pytest.raises(InputError, match=r"a\.npy was whitened before"):
        ae_trainer.load_training_rows(files)
    assert plain.prepare(embeddings) is embeddings and plain.fingerprint() != tokenizer.fingerprint()


def test_whitened_embeddings_are_as_wide_in_every_direction():
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(500, 8)) @ generator.normal(size=(8, 8)) + 3
    embeddings[::50] = 0
    whitening = Whitening.of(embeddings)
    unit = embeddings[embeddings.any(axis=1)]
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    white = (unit - unit.mean(axis=0)) @ whitening.transform
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(8), atol=5e-2)
    rows = whitening(embeddings)
    assert not rows[::50].any()
    np.testing.assert_allclose(np.linalg.norm(rows[1::50], axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(whitening(embeddings[7:9]), rows[7:9], "whatever chunk a row is in")
    with pytest.raises(InputError, match="row 3: the embedding holds NaN"):
        Whitening.of(np.vstack([embeddings[:3], np.full((1, 8), np.nan)]))
