"""Other levels and numbers of codes: everything follows from them, and files say which they have."""

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ae_trainer import AutoEncoder, load_tokenizer
from model import load_model
from tests import runs
from tests.conftest import dump
from utils.checkpoint import save_state
from utils.errors import InputError
from utils.fsq import FSQ, PUBLISHED, Codebook, code_keys
from utils.packed import data_fingerprint, open_packed, pack
from utils.pickles import load_pickle
from utils.random_codes import RandomCodes

SMALL, EMBEDDINGS = Codebook((5, 4), 2), "shop/item_text_embeddings.npy"


@given(st.lists(st.integers(2, 12), min_size=1, max_size=4).map(tuple), st.integers(1, 9))
def test_all_sizes_follow_from_the_levels(levels, per_item):
    codebook = Codebook(levels, per_item)
    indices, quantizer = torch.arange(codebook.size), FSQ(8, codebook)
    codes = quantizer.indices_to_codes(indices)
    assert codes.shape == (codebook.size, len(levels)) and len(codes.unique(dim=0)) == codebook.size
    assert torch.equal(quantizer.codes_to_indices(codes), indices)
    _, found = quantizer(torch.randn(200, 8) * 20)
    assert found.min() >= 0 and found.max() < codebook.size == codebook.padding == codebook.vocabulary - 1
    assert Codebook.read(json.loads(json.dumps(codebook.noted())), "x") == codebook


def test_every_level_is_reached():
    quantizer = FSQ(8, Codebook((2, 3, 8), 4))
    z = torch.linspace(-9, 9, 2001)[:, None].expand(-1, 3)
    digits = (quantizer.quantize(z) * quantizer.half_width).round()
    assert [len(column.unique()) for column in digits.T] == [2, 3, 8]


def test_names():
    assert (PUBLISHED.name, SMALL.name, Codebook((16, 5), 4).name) == ("len4_fsq88865", "len2_fsq54", "len4_fsq-16-5")
    assert Codebook((22,)).name != Codebook((2, 2)).name


@pytest.mark.parametrize("levels", [(), (1, 8), (8, 0), (8.0,), (True, 2), (200, 200), [8, 8], (2,) * 15, "88"])
def test_levels_that_are_none(levels):
    with pytest.raises(ValueError, match="levels"):
        Codebook(levels)
    for per_item in (0, 65, 4.0, None, True):
        with pytest.raises(ValueError, match="an item cannot have"):
            Codebook(per_item=per_item)


@given(st.lists(st.lists(st.integers(0, 32766), min_size=3, max_size=3), min_size=1, max_size=30))
def test_keys_are_in_the_order_of_codes(rows):
    keys = code_keys(np.array(rows, dtype=np.int16))
    for one, key in zip(rows, keys, strict=True):
        assert (keys < key).tolist() == [other < one for other in rows]
        assert (keys == key).tolist() == [other == one for other in rows]


# Tokenizers


def test_fingerprints_cover_what_decides_codes(monkeypatch):
    """Of the release they are what they were: a hash of project_in alone."""
    torch.manual_seed(0)
    one = AutoEncoder(64)
    weight, bias = (side.detach().numpy().tobytes() for side in one.quantizer.project_in.parameters())
    assert one.fingerprint() == hashlib.sha256(weight + bias).hexdigest()[:16]
    others = []
    for codebook in (Codebook((8, 8, 8, 5, 6)), Codebook((5, 6, 8, 8, 8))):
        other = AutoEncoder(64, codebook=codebook)
        other.load_state_dict(one.state_dict())
        embeddings = np.random.default_rng(0).standard_normal((50, 64), dtype=np.float32)
        assert not np.array_equal(other.tokenize(embeddings), one.tokenize(embeddings))
        others.append(other.fingerprint())
    monkeypatch.setattr("ae_trainer.VERSION", 2)
    assert len({one.fingerprint(), *others, hashlib.sha256(weight + bias).hexdigest()[:16]}) == 4


def test_the_levels_of_a_file_win(tmp_path):
    """Where none are noted, as in the release, they are the published ones; a JSON that contradicts is refused."""
    tokenizer, path = AutoEncoder(64, codebook=Codebook((8, 8, 8, 5, 6))), tmp_path / "t.pt"
    save_state(path, tokenizer.state_dict(), {"config": tokenizer.codebook.noted()})
    assert load_tokenizer(path).codebook == tokenizer.codebook
    path.with_suffix(".json").unlink()
    assert load_tokenizer(path).fingerprint() == tokenizer.fingerprint()
    path.with_suffix(".json").write_text(json.dumps({"config": PUBLISHED.noted()}))
    with pytest.raises(InputError, match=r"levels is \[8, 8, 8, 5, 6\] by the weights, \[8, 8, 8, 6, 5\] by the JSON"):
        load_tokenizer(path)
    path.with_suffix(".json").unlink()
    torch.save(dict(tokenizer.state_dict()), path)
    assert load_tokenizer(path).codebook == PUBLISHED
    tokenizer.save_pretrained(tmp_path / "folder")
    assert load_tokenizer(tmp_path / "folder").fingerprint() == tokenizer.fingerprint()
    for odd, said in (([8, 1], "no such codes exist"), ("8", "no such codes exist"), ([8, 8], "project_in")):
        path.with_suffix(".json").write_text(json.dumps({"config": {"levels": odd}}))
        with pytest.raises(InputError, match=said):
            load_tokenizer(path)


# From texts to recommendations


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A data set directory, its tokenizer of two codes of 20 values, and a model trained on it."""
    folder, rng = tmp_path_factory.mktemp("codebooks"), np.random.default_rng(0)
    lists = {user: rng.integers(0, 90, rng.integers(4, 9)).tolist() for user in range(60)}
    dump(folder / "shop/train.pkl", {user: items[:-1] for user, items in lists.items()})
    dump(folder / "shop/test.pkl", lists)
    dump(folder / "shop/item_text_dict.pkl", {item: {"title": f"item {item}"} for item in range(90)})
    np.save(folder / "shop/item_text_embeddings.npy", rng.standard_normal((90, 64), dtype=np.float32))
    flags = "--embeddings shop/item_text_embeddings.npy --epoch 1 --device cpu --levels 5,4 --codes 2 --output vae"
    runs.finish(folder, flags, script="ae_trainer")
    vae = "--vae_ckpt vae/vae_len2_fsq54_ep0.pt "
    flags = f"--datasets shop --output pt --device cpu {vae}"
    runs.finish(folder, flags, script="data_processing.make_pre_train")
    flags = "--data_path pt --eval_path pt/eval --eval_every 5 --best_by ndcg --ckpt_dir ckpt --log_file log.jsonl "
    runs.finish(folder, flags + "--width 32 --tf_layer 1 --device cpu --epoch 2")
    return folder, vae


def test_the_whole_path_runs_with_other_codes(shop):
    folder, vae = shop
    codes = load_pickle(folder / "pt/token_id_list.pkl", list, "")
    assert np.array(codes).shape == (90, 2) and np.max(codes) < 20
    noted = json.loads((folder / "pt/token_id_list.json").read_text())
    assert (noted["levels"], noted["codes_per_item"]) == ([5, 4], 2)
    model, _ = load_model(folder / "ckpt/layer_1_best.pt", "cpu")
    assert model.config.codebook == SMALL and model.gpt2model.wte.weight.shape == (21, 32)
    assert model.gpt2model.wpe.weight.shape[0] == 512
    runs.finish(folder, "--data_path pt/eval --ckpt_path ckpt/layer_1_best.pt --device cpu", script="eval")
    ranked = f"--dataset shop --ckpt_path ckpt/layer_1_best.pt --device cpu {vae}"
    for flags in ("--blend", "--search beam", "--search free --results r.jsonl", "--protocol released"):
        runs.finish(folder, ranked + flags, script="predict")
    rows = [json.loads(line) for line in (folder / "r.jsonl").read_text().splitlines()]
    shares = {row["group"]: (row["users"], row["invalid@5"]) for row in rows if row["method"] == "RecGPT"}
    assert all(0 < share < 1 for _, share in shares.values()) and len(shares) > 1
    users, parts = zip(*(found for group, found in shares.items() if group != "all users"), strict=True)
    assert np.average(parts, weights=users) == pytest.approx(shares["all users"][1], abs=1e-5)
    said = runs.finish(folder, ranked + "--search free --output x.jsonl", expect=2, script="predict")
    assert "--output lists items" in said and not (folder / "x.jsonl").exists()
    runs.finish(folder, f"{ranked} --search free --topk 441 --results all.jsonl", script="predict")
    row = json.loads((folder / "all.jsonl").read_text().splitlines()[0])
    assert row["hit@441"] == 1, "of all rows of codes, one is the target's"
    flags = f"--dataset shop --ckpt_path ckpt/layer_1_best.pt {vae}--output bundle --rank_by model"
    runs.finish(folder, flags, script="serving.bundle")


@pytest.mark.parametrize(
    ("script", "flags", "said"),
    [
        ("predict", "--vae_ckpt other.pt", "reads 2 codes of levels (5, 4) for each item"),
        ("predict", "--vae_ckpt random:1", "was trained on codes of tokenizer"),
        (
            "export",
            "--input vae/vae_len2_fsq54_ep0.pt --output x.pt",
            "makes 2 codes of levels (5, 4), and the published",
        ),
        ("ae_trainer", "--levels 8,x", "expected whole numbers such as"),
        ("ae_trainer", "--levels 1,8", "--levels 1,8, --codes 4: levels"),
        ("ae_trainer", "--levels 999,999", "make 998001 codes"),
        ("ae_trainer", "--codes 3", "a multiple of 24 (3 slices"),
        ("ae_trainer", "--output vae --resume", "There is vae_len2_fsq54.resume: give its --levels"),
    ],
)
def test_what_does_not_fit_is_refused(shop, script, flags, said):
    folder, _ = shop
    save_state(folder / "other.pt", AutoEncoder(64).state_dict(), {})
    data = {
        "predict": "--device cpu --dataset shop --ckpt_path ckpt/layer_1_best.pt ",
        "ae_trainer": f"--device cpu --embeddings {EMBEDDINGS} ",
    }
    assert said in runs.finish(folder, data.get(script, "") + flags, expect=2, script=script)


def test_the_whole_path_runs_with_codes_drawn_at_random(shop, tmp_path):
    """The checkpoint knows them again, in every script, and what is of a tokenizer does not fit it."""
    folder, vae = shop
    drawn = "--vae_ckpt random:7 --device cpu "
    runs.finish(folder, f"--datasets shop --output rt {drawn}", script="data_processing.make_pre_train")
    embeddings = "rt/all_item_text_embeddings.npy"
    flags = f"--embeddings {embeddings} --random 7 --output tokens.pkl --device cpu"
    runs.finish(folder, flags, script="data_processing.make_token_list")
    one, other = (load_pickle(folder / name, list, "") for name in ("tokens.pkl", "rt/token_id_list.pkl"))
    assert one == other == RandomCodes(7).tokenize(np.load(folder / embeddings)).tolist()
    flags = "--data_path rt --ckpt_dir random --log_file log.jsonl --width 32 --tf_layer 1 --device cpu --epoch 1"
    runs.finish(folder, flags)
    model = "--ckpt_path random/layer_1_epoch_0.pt "
    runs.finish(folder, f"--data_path rt/eval {model} --device cpu", script="eval")
    runs.finish(folder, f"--dataset shop {model} {drawn} --blend", script="predict")
    said = runs.finish(folder, f"--dataset shop {model} {vae} --device cpu", expect=2, script="predict")
    assert "was trained on codes of tokenizer random:7" in said
    flags = f"--dataset shop {model} {drawn} --output random_bundle --rank_by model"
    assert "are an ablation" in runs.finish(folder, flags, expect=2, script="serving.bundle")
    flags = "--input random/layer_1_epoch_0.pt --vae_ckpt random:7 --pretrained shared"
    assert "are an ablation" in runs.finish(folder, flags, expect=2, script="export")
    assert not (folder / "shared").exists()
    flags = f"--datasets shop --output rt16 --dtype float16 {drawn}"
    runs.finish(folder, flags, script="data_processing.make_pre_train")
    assert load_pickle(folder / "rt16/token_id_list.pkl", list, "") == one
    flags = f"--embeddings {embeddings} --random 7 --vae_ckpt vae.pt --output x.pkl"
    assert "not allowed with" in runs.finish(folder, flags, expect=2, script="data_processing.make_token_list")
    assert not (folder / "random_bundle/bundle.json").exists()


def test_codes_noted_as_others_are_refused(shop, tmp_path):
    """A packed form, a token list and an index say their levels; odd ones, and codes beyond them, are refused."""
    folder, _ = shop
    beside = folder / "pt/token_id_list.json"
    noted = json.loads(beside.read_text())
    flags = "--data_path pt --ckpt_dir other --log_file log.jsonl --width 32 --tf_layer 1 --device cpu --epoch 1"
    header = json.loads((folder / "pt/packed/packed.json").read_text())
    assert (header["levels"], header["codes_per_item"]) == ([5, 4], 2)
    try:
        for change, said in (({"levels": [5, 2]}, "expected 0 to 9"), ({"levels": 5}, "no such codes exist")):
            beside.write_text(json.dumps(noted | change))
            (folder / "pt/packed/packed.json").unlink(missing_ok=True)
            assert said in runs.finish(folder, flags, expect=2)
    finally:
        beside.write_text(json.dumps(noted))
    runs.finish(folder, flags)
    for change in ({"levels": [5, 2]}, {"codes_per_item": 4}, {"levels": None, "codes_per_item": None}):
        (folder / "pt/packed/packed.json").write_text(json.dumps(header | change))
        assert "does not have" in runs.finish(folder, flags, expect=2)


def test_data_packed_before_levels_were_noted_are_the_same_data(tmp_path):
    runs.make_data(tmp_path, 20)
    pack(tmp_path / "pt")
    now = data_fingerprint(tmp_path / "pt")
    path = tmp_path / "pt/packed/packed.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in header.items() if name not in PUBLISHED.noted()}))
    assert data_fingerprint(tmp_path / "pt") == now
    assert open_packed(tmp_path / "pt")[0].catalog.codebook == PUBLISHED


def test_more_levels_than_a_slice_has_numbers():
    tokenizer = AutoEncoder(16, codebook=Codebook((3,) * 9, 2))
    tokenizer.start_from(np.random.default_rng(0).standard_normal((50, 16), dtype=np.float32))
    assert (tokenizer.quantizer.project_in.weight[8] == 0).all()
    assert tokenizer.quantizer.project_in.weight[:7].any(dim=1).all()
