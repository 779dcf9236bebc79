"""The mask, packing, caches and the checkpoints of a small model."""

import json

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from model import RecGPT, RecGPTConfig, load_model
from modeling_gpt2_rec import item_block_mask
from utils.checkpoint import find_checkpoints, save_state
from utils.data import Catalog, Sequences, cumulate, left_padded_batch, packed_batch, padded_batch
from utils.errors import InputError
from utils.past_key_values import append_item, split_cache

CPU = torch.device("cpu")
ITEMS = 50


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return RecGPT(RecGPTConfig(layers=2, width=64, heads=4, embedding_width=32)).eval()


@pytest.fixture(scope="module")
def catalog():
    rng = np.random.default_rng(2)
    return Catalog(
        rng.integers(0, 15360, (ITEMS, 4)).astype(np.int16), rng.standard_normal((ITEMS, 32)).astype(np.float32)
    )


def sequences_of(*histories):
    lengths = np.array([len(history) for history in histories])
    return Sequences(np.arange(len(histories)), np.concatenate(histories).astype(np.int64), cumulate(lengths))


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(3)
    return sequences_of(*(rng.integers(0, ITEMS, length) for length in (5, 1, 9, 3, 30, 2, 12)))


def test_mask_is_what_the_design_says():
    history = torch.tensor([[0] * 8 + [1] * 4 + [-1] * 4])
    mask = item_block_mask(history, 16, 4)[0, 0]
    for i in range(16):
        for j in range(16):
            assert mask[i, j] == (j // 4 <= i // 4 and history[0, i] == history[0, j])
    assert torch.equal(item_block_mask(history, 4, 4)[0, 0], mask[-4:])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_later_codes_of_an_item_are_seen_and_later_items_are_not(model, catalog, attention):
    model.gpt2model.config._attn_implementation = attention
    try:
        batch = padded_batch(sequences_of([1, 2, 3]), catalog)
        codes = batch.codes.clone()
        codes[0, 1, 3] = (codes[0, 1, 3] + 1) % 15360  # the last code of the second item
        with torch.inference_mode():
            change = (model.hidden(batch) - model.hidden(batch._replace(codes=codes)))[0].abs().amax(-1)
    finally:
        model.gpt2model.config._attn_implementation = "sdpa"
    assert (change[:4] == 0).all()  # the first item does not see the second
    assert (change[4:] > 1e-6).all()  # the second item's earlier codes, and the third item, do


@torch.inference_mode()
def test_predictions_do_not_depend_on_the_batch(model, catalog, sequences):
    together = model.next_item_logits(padded_batch(sequences, catalog))
    packed = model.next_item_logits(packed_batch(sequences, catalog))
    alone = torch.cat(
        [model.next_item_logits(padded_batch(sequences.select(np.array([row])), catalog)) for row in range(7)]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    # The published layout does depend on it, which is why `corrected` exists.
    assert not torch.allclose(model.next_item_logits(left_padded_batch(sequences, catalog)), alone, atol=1e-3)


@torch.inference_mode()
def test_packing_keeps_the_loss_and_wastes_little(model, catalog, sequences):
    packed, padded = packed_batch(sequences, catalog), padded_batch(sequences, catalog)
    torch.testing.assert_close(model(packed).mean, model(padded).mean, rtol=1e-6, atol=0)
    assert model(packed).targets == 4 * sum(sequences.lengths - 1)
    assert packed.history.numel() == 90  # 62 items in three rows of 30, not in seven


def test_chunked_loss_is_the_plain_one(model, catalog, sequences, monkeypatch):
    batch = packed_batch(sequences, catalog)
    plain = model(batch).mean
    gradient = torch.autograd.grad(plain, model.pred_head.weight)[0]
    monkeypatch.setattr("model.LOGITS_AT_ONCE", 0)
    chunked = model(batch).mean
    torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(chunked, model.pred_head.weight)[0], gradient)


@torch.inference_mode()
def test_cache_gives_what_the_whole_history_gives(model, catalog):
    histories = [[4, 8, 15], [16, 23, 42, 7, 9, 1], [3]]
    batch = padded_batch(sequences_of(*histories), catalog)
    cache = DynamicCache()
    model.hidden(batch, cache)
    caches = split_cache(cache, batch.history)
    assert [one.items for one in caches] == [3, 6, 1]
    for item in (11, 12):
        users = [2, 0, 1]  # other company, other order
        histories, caches = [histories[user] + [item] for user in users], [caches[user] for user in users]
        items = np.full(3, item)
        codes, embeddings = torch.tensor(catalog.codes[items]).long(), torch.tensor(catalog.embed(items))
        logits, caches = append_item(model, caches, codes, embeddings)
        expected = model.next_item_logits(padded_batch(sequences_of(*histories), catalog))
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_checkpoint_round_trip_reads_every_size(model, catalog, sequences, tmp_path):
    path = tmp_path / "m.pt"
    save_state(path, model, {"config": {"heads": 4}, "step": 7})
    loaded, about = load_model(path, CPU)
    assert about["step"] == 7
    assert (loaded.config.layers, loaded.config.width, loaded.config.heads) == (2, 64, 4)
    batch = packed_batch(sequences, catalog)
    with torch.inference_mode():
        assert torch.equal(loaded.hidden(batch), model.hidden(batch))
    with pytest.raises(InputError, match="--tf_layer 3 contradicts .* has 2 layers"):
        load_model(path, CPU, layers=3)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.json", "m.pt"]


def test_zip_parts_are_joined(model, tmp_path):
    import zipfile

    save_state(tmp_path / "m.pt", model, {"config": {"heads": 4}})
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.write(tmp_path / "m.pt", "m.pt")
    whole = (tmp_path / "m.zip").read_bytes()
    (tmp_path / "m.pt").unlink()
    for part, start in zip(("aa", "ab", "ac"), range(0, len(whole), len(whole) // 3 + 1), strict=True):
        (tmp_path / f"m.pt.zip.part{part}").write_bytes(whole[start : start + len(whole) // 3 + 1])
    assert find_checkpoints([str(tmp_path)]) == [tmp_path / "m.pt"]
    for name in ("m.pt", "m.pt.zip.partaa"):
        loaded, _ = load_model(tmp_path / name, CPU)
        assert torch.equal(loaded.pred_head.weight, model.pred_head.weight)
    (tmp_path / "m.pt.zip.partab").unlink()
    with pytest.raises(InputError, match="partab is missing"):
        load_model(tmp_path / "m.pt", CPU)


def test_checkpoints_are_found_in_natural_order(tmp_path):
    names = [f"layer_3_epoch_0_step_{step}.pt" for step in (5000, 10000)] + ["layer_3_epoch_0.pt"]
    for name in names:
        (tmp_path / name).touch()
        (tmp_path / name).with_suffix(".json").write_text(json.dumps({}))
    found = [path.name for path in find_checkpoints([str(tmp_path)])]
    assert sorted(found) == sorted(names)
    assert found.index(names[0]) < found.index(names[1])
    assert len(find_checkpoints([str(tmp_path / "*step*.pt"), str(tmp_path)])) == 3
    with pytest.raises(InputError, match="matches no checkpoint"):
        find_checkpoints([str(tmp_path / "nothing*.pt")])
