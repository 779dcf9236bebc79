"""A tokenizer that whitens, through every script: tokenizer and model read whitened embeddings everywhere."""

import importlib
import json
import sys

import numpy as np
import pytest

from serving import scoring
from tests.conftest import dump
from utils.cli import run
from utils.datasets import load_eval
from utils.packed import open_packed
from utils.whitening import whiten

WIDTH, ITEMS = 32, 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shops with embeddings that have much in common, and a tokenizer that was trained on the first."""
    folder, rng = tmp_path_factory.mktemp("white"), np.random.default_rng(0)
    for number, shop in enumerate(("shop", "other")):
        lists = {user: rng.integers(0, ITEMS, 8).tolist() for user in range(30)}
        dump(folder / shop / "test.pkl", lists)
        dump(folder / shop / "train.pkl", {user: items[:-1] for user, items in lists.items()})
        embeddings = (rng.standard_normal((ITEMS, WIDTH)) @ rng.standard_normal((WIDTH, WIDTH))).astype("f4")
        embeddings += 5 * number
        embeddings[7] = 0  # an item without text
        np.save(folder / shop / "item_text_embeddings.npy", embeddings)
        (folder / shop / "item_text_embeddings.json").write_text(json.dumps({"encoder": "E"}))
    flags = f"--embeddings {folder}/shop/item_text_embeddings.npy --output {folder} --epoch 1 --device cpu"
    for output, further in ((folder / "plain", ""), (folder, " --whiten")):
        call("ae_trainer", flags.replace(f"--output {folder}", f"--output {output}") + further)
    return folder


def call(script: str, flags: str) -> None:
    """`python SCRIPT.py FLAGS` in this process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [f"{script}.py", *flags.split()])
        importlib.import_module(script).main()


def refused(capsys, script: str, flags: str) -> str:
    """The message with which a script ends."""
    with pytest.raises(SystemExit) as stopped:
        run(lambda: call(script, flags))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def white(folder, shop: str) -> np.ndarray:
    return whiten(np.load(folder / shop / "item_text_embeddings.npy"))


def test_tokenizer_and_model_read_whitened_embeddings(folder, monkeypatch, capsys):
    vae = f"--vae_ckpt {folder}/vae_len4_fsq88865_ep0.pt --device cpu"
    call("data_processing.make_pre_train", f"--datasets {folder}/shop {folder}/other --output {folder}/made {vae}")
    call("data_processing.make_eval", f"--datasets {folder}/other --output {folder}/eval {vae}")
    training = f"--tf_layer 1 --width 32 --heads 2 --max_steps 2 --device cpu --ckpt_dir {folder}/ckpt --save_last"
    monkeypatch.chdir(folder)
    call("pre_train", f"--data_path {folder}/made --eval_path {folder}/eval --eval_every 2 {training}")
    read = []
    monkeypatch.setattr(scoring, "Catalog", lambda *parts, **named: read.append(parts) or catalog(*parts, **named))
    catalog = importlib.import_module("utils.data").Catalog
    call("predict", f"--dataset {folder}/other --ckpt_path {folder}/ckpt/layer_1_last.pt {vae}")

    trained, _ = open_packed(folder / "made")
    held_out = load_eval(folder / "eval")
    both = np.concatenate([white(folder, "shop"), white(folder, "other")])
    np.testing.assert_allclose(trained.catalog.embeddings, both, atol=1e-6)
    for codes, embeddings in ((held_out.catalog.codes, held_out.catalog.embeddings), read[0]):
        np.testing.assert_allclose(embeddings[:], both[ITEMS:], atol=1e-6)
        np.testing.assert_array_equal(codes, trained.catalog.codes[ITEMS:])
    assert trained.encoder == held_out.encoder == "E, whitened"

    plain = f"--vae_ckpt {folder}/plain/vae_len4_fsq88865_ep0.pt --device cpu"
    said = refused(capsys, "predict", f"--dataset {folder}/other --ckpt_path {folder}/ckpt/layer_1_last.pt {plain}")
    assert "was trained on codes of tokenizer" in said and "Name the first with --vae_ckpt" in said


def test_what_cannot_whiten_refuses(folder, capsys):
    vae, embeddings = f"{folder}/vae_len4_fsq88865_ep0.pt", f"{folder}/shop/item_text_embeddings.npy"
    tokens = f"--embeddings {embeddings} --vae_ckpt {vae} --output {folder}/codes.pkl --device cpu"
    assert "has plain ones. Use make_pre_train.py" in refused(capsys, "data_processing.make_token_list", tokens)
    said = refused(capsys, "export", f"--input {vae} --output {folder}/exported.pt")
    assert "which the published program cannot do" in said and not (folder / "exported.pt").exists()
