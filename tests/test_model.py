"""The mask, groups, the loss, caches and the checkpoints of a small model."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.backends.cuda import cudnn_sdp_enabled
from transformers import DynamicCache, GPT2Model

import modeling_gpt2_rec
from model import Items, RecGPT, RecGPTConfig, load_model
from utils.checkpoint import find_checkpoints, save_state
from utils.data import (
    GROUP_PADDING,
    Catalog,
    Sequences,
    cumulate,
    group_by_length,
    make_batch,
    token_positions,
    training_batch,
)
from utils.errors import InputError
from utils.masks import MASKS
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


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(3)
    return Sequences.of(*(rng.integers(0, ITEMS, length) for length in (5, 1, 9, 3, 30, 2, 12)))


def test_the_attention_of_cudnn_is_off_where_it_would_serve_and_nowhere_else(monkeypatch):
    """It cost 20 times a step's own time with bf16 on an H100 (docs/log.md); the process may use it elsewhere."""
    seen = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_, **__: seen.append(cudnn_sdp_enabled()))
    monkeypatch.setattr("torch.backends.cuda.enable_cudnn_sdp", lambda _: pytest.fail("switched for the whole process"))
    RecGPT(RecGPTConfig(layers=1, width=8, heads=1, embedding_width=32))
    assert cudnn_sdp_enabled()
    for on_gpu in (True, False):
        modeling_gpt2_rec.attend(SimpleNamespace(is_cuda=on_gpu), None, None, None)
    assert seen == [False, True] and cudnn_sdp_enabled()


@pytest.mark.parametrize("layers", [3, 12])
def test_weights_start_as_those_of_gpt2(layers):
    """Every tensor's mean and spread, at the published width: those of transformers' own model of the same sizes."""
    config = RecGPTConfig(layers=layers).gpt2()
    torch.manual_seed(0)
    ours, plain = RecGPT(RecGPTConfig(layers=layers)).gpt2model.state_dict(), GPT2Model(config).state_dict()
    assert list(ours) == list(plain)
    for name, expected in plain.items():
        assert ours[name].std(correction=0).item() == pytest.approx(expected.std(correction=0).item(), rel=0.02), name
        assert ours[name].mean().item() == pytest.approx(expected.mean().item(), abs=1e-4), name


def in_rows(model, batch, attention):
    """Hidden states (T, D) of one history by another of transformers' attentions: a row, a mask, no groups."""
    inputs = model.fuse(batch.codes, batch.embeddings)[None]
    positions = torch.arange(inputs.shape[1])
    # Eager attention adds the mask to the scores; a boolean one would be added as 0 and 1.
    added = ~model.gpt2model.mask(positions, positions, 4) * torch.finfo(torch.float32).min
    model.gpt2model.config._attn_implementation = attention
    try:
        return model.gpt2model(inputs, token_positions(batch.positions, 4)[None], attention_mask=added[None, None])[0]
    finally:
        model.gpt2model.config._attn_implementation = "item_block"


def test_mask_is_what_the_design_says():
    mask = MASKS["item_block"](torch.arange(16), torch.arange(16), 4)
    assert mask.tolist() == [[j // 4 <= i // 4 for j in range(16)] for i in range(16)]


@pytest.mark.parametrize("name", MASKS)
def test_no_token_sees_a_later_item(name):
    """Under a mask that shows later items, training would see padding, and appending an item would need other keys."""
    mask = MASKS[name](torch.arange(16), torch.arange(16), 4)
    assert not any(mask[i, j] for i in range(16) for j in range(16) if j // 4 > i // 4)


@torch.inference_mode()
def test_later_codes_of_an_item_are_seen_and_later_items_are_not(model, catalog):
    batch = make_batch(Sequences.of([1, 2, 3]), catalog)
    codes = batch.codes.clone()
    codes[1, 3] = (codes[1, 3] + 1) % 15360  # the last code of the second item
    change = (model.hidden(batch) - model.hidden(batch._replace(codes=codes))).abs().amax(-1)
    assert (change[:4] == 0).all()  # the first item does not see the second
    assert (change[4:] > 1e-6).all()  # the second item's earlier codes, and the third item, do


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.inference_mode()
def test_grouped_attention_is_attention_in_rows(model, catalog, sequences, attention):
    together = model.hidden(make_batch(sequences, catalog)).split((4 * np.sort(sequences.lengths)[::-1]).tolist())
    for hidden, row in zip(together, np.argsort(-sequences.lengths), strict=True):
        alone = in_rows(model, make_batch(sequences.select(row[None]), catalog), attention)
        torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=1e-5)


def test_histories_that_are_none_are_refused(model, catalog):
    """An empty history would get another user's logits, a negative id another item's codes."""
    for make in (make_batch, training_batch):
        with pytest.raises(ValueError, match="history 1 of the batch is empty"):
            make(Sequences.of([1, 2], [], [3, 4]), catalog)
        with pytest.raises(ValueError, match="there is no history"):
            make(Sequences.of([1, 2], [3]).select(np.array([], dtype=int)), catalog)
        for odd in (-1, ITEMS):
            with pytest.raises(ValueError, match=f"item id {odd} is none of the catalog, which has 0 to {ITEMS - 1}"):
                make(Sequences.of([1, 2], [3, odd, 4]), catalog)
            with pytest.raises(ValueError, match=f"item id {odd} is none"):
                make(Sequences.of([1, 2], [3, odd]), catalog)
    for left_padded in (False, True):
        with pytest.raises(ValueError, match="a history has 257 items, the window 256"):
            model.next_item_logits(make_batch(Sequences.of([1, 2], [3] * 257), catalog, left_padded))
    with pytest.raises(ValueError, match="a history has 257 items"):
        model(training_batch(Sequences.of([3] * 258), catalog))


@given(st.lists(st.integers(1, 256), min_size=1, max_size=60))
@settings(deadline=None)
def test_groups_hold_every_slot_once_and_little_padding(lengths):
    lengths = np.sort(lengths)[::-1]
    groups = group_by_length(lengths)
    slots, start, history = cumulate(lengths), 0, 0
    for histories, longest in groups.shapes:
        for length in lengths[history : history + histories]:
            assert longest * (1 - GROUP_PADDING) <= length <= longest
            places = groups.padded[start : start + longest].tolist()
            first, last = slots[history], slots[history] + length - 1
            assert places == [*range(first, last + 1)] + [last] * (longest - length)
            assert groups.unpadded[first : last + 1].tolist() == list(range(start, start + length))
            start, history = start + longest, history + 1
    assert start == len(groups.padded) and history == len(lengths)


@torch.inference_mode()
def test_predictions_do_not_depend_on_the_batch(model, catalog, sequences):
    together = model.next_item_logits(make_batch(sequences, catalog))
    alone = torch.cat(
        [model.next_item_logits(make_batch(sequences.select(np.array([row])), catalog)) for row in range(7)]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    # The published layout does depend on it, which is why `corrected` exists.
    assert not torch.allclose(model.next_item_logits(make_batch(sequences, catalog, True)), alone, atol=1e-3)


@torch.inference_mode()
def test_the_last_block_computes_what_is_read(model, catalog, sequences):
    batch = make_batch(sequences, catalog)
    whole = model.hidden(batch).unflatten(0, (-1, 4))[batch.last]
    torch.testing.assert_close(model.hidden(batch, last=batch.last), whole, atol=1e-5, rtol=1e-5)


def assert_same_gradients(model, ours, plain):
    """Two losses () have the same gradients by all parameters of a model."""
    gradients = (torch.autograd.grad(loss, model.parameters()) for loss in (ours, plain))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_loss_and_gradient_are_the_plain_ones(model, catalog, sequences, monkeypatch):
    """All logits of all items, histories one by one, against chunks of targets and no item that has none."""
    monkeypatch.setattr("model.LOGITS_AT_ONCE", 50)
    losses, targets = [], []
    for row in range(7):
        batch = make_batch(sequences.select(np.array([row])), catalog)
        logits = model.pred_head(in_rows(model, batch, "eager"))
        targets.append(batch.codes[1:].flatten())
        losses.append(F.cross_entropy(logits[:-4], targets[-1], reduction="none"))
    plain = torch.cat(losses).mean()
    output = model(training_batch(sequences, catalog))
    assert output.targets == len(torch.cat(targets)) == 4 * sum(sequences.lengths - 1)
    torch.testing.assert_close(output.mean, plain, rtol=1e-6, atol=0)
    assert_same_gradients(model, output.mean, plain)


def test_one_table_for_embedding_and_head(catalog, sequences):
    """It gets the gradients of both uses, and costs the products of the head as two tables do."""
    torch.manual_seed(4)
    model = RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=32, dropout=0.0)).train()
    with torch.no_grad():
        model.pred_head.weight.copy_(model.gpt2model.wte.weight)
    flops, names, batch = model.flops_per_token(), model.state_dict().keys(), training_batch(sequences, catalog)
    apart = torch.autograd.grad(model(batch).mean, (model.gpt2model.wte.weight, model.pred_head.weight))
    model.tie_embeddings()
    assert model.flops_per_token() == flops and model.state_dict().keys() == names
    (shared,) = torch.autograd.grad(model(batch).mean, (model.gpt2model.wte.weight,))
    torch.testing.assert_close(shared, sum(apart))


def made_to_predict_items(catalog):
    torch.manual_seed(4)
    model = RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=32, dropout=0.0, predicts="items"))
    model.items = Items(catalog)
    return model


def scores_by_hand(model, queries, catalog):
    """Scores (S, N) of all items, each by its four token embeddings and its four projected slices."""
    table, project = model.gpt2model.wte.weight, model.linear_layer.weight
    return torch.stack(
        [
            queries
            @ sum(
                table[code] + project @ piece
                for code, piece in zip(
                    codes.tolist(), torch.from_numpy(np.asarray(embedding, dtype=np.float32)).chunk(4), strict=True
                )
            )
            for codes, embedding in zip(catalog.codes, catalog.embeddings, strict=True)
        ],
        dim=1,
    )


def test_predicting_items_is_a_softmax_over_the_catalog(catalog, sequences, tmp_path):
    """Items are scored by what stands for them in the input; a checkpoint says so, and has no head for codes."""
    model, batch = made_to_predict_items(catalog), training_batch(sequences, catalog)
    assert "pred_head.weight" not in model.state_dict() and "items.codes" not in model.state_dict()
    hidden = model.hidden(batch)
    scores = scores_by_hand(model, hidden.unflatten(0, (-1, 4)).mean(1), catalog)
    targets = [item for items in sorted(sequences.lists(), key=len, reverse=True) for item in items[1:]]
    assert sorted(batch.target_items.tolist()) == sorted(targets)
    expected = F.cross_entropy(scores, batch.target_items)
    found = model(batch)
    assert found.targets == 4 * len(targets)
    torch.testing.assert_close(found.mean * 4, expected, rtol=1e-5, atol=0)
    assert_same_gradients(model, found.mean * 4, expected)
    last = training_batch(sequences, catalog, last_only=True)
    assert last.target_items.shape == last.last.shape
    torch.testing.assert_close(
        model(last).total, F.cross_entropy(scores[batch.last], last.target_items, reduction="sum")
    )
    nothing = model(batch.without_targets())
    assert nothing.total == 0 and nothing.targets == 0
    blocks, projection = 12 * 64 * 64, 8 * 64
    assert abs(model.flops_per_token() / 6 - blocks - projection - 64 * len(catalog) / 4) < 20 * 64  # biases and norms

    path = tmp_path / "m.pt"
    save_state(path, model.state_dict(), {"config": {"heads": 1, "predicts": "items"}})
    read = make_batch(sequences, catalog)
    queries = load_model(path, CPU)[0].next_item_queries(read)
    torch.testing.assert_close(queries, model.eval().next_item(read))
    some = np.array([5, 2])
    torch.testing.assert_close(model.item_vectors(Items(catalog, some)), model.item_vectors(model.items)[some])
    path.with_suffix(".json").unlink()
    assert load_model(path, CPU)[0].config.predicts == "items", "the weights say it, too"
    path.with_suffix(".json").write_text('{"config": {"predicts": "codes"}}')
    with pytest.raises(InputError, match="predicts is 'items' by the weights, 'codes' by the JSON"):
        load_model(path, CPU)
    path.with_suffix(".json").unlink()
    torch.save(dict(torch.load(path, weights_only=True)), path)  # as other programs write it: without the note
    with pytest.raises(InputError, match="missing pred_head.weight"):
        load_model(path, CPU)
    with pytest.raises(ValueError, match=r"model.items = Items\(catalog\)"):
        RecGPT(model.config)(batch)
    with pytest.raises(ValueError, match="has no logits of codes"):
        model.next_item_logits(read)
    with pytest.raises(ValueError, match="has no queries"):
        RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=32)).eval().next_item_queries(read)
    with pytest.raises(ValueError, match="'words' is none of"):
        RecGPTConfig(predicts="words")


@torch.inference_mode()
def test_items_of_equal_codes_and_texts_tie(catalog):
    """Whatever the order in which products are added up; an item of the same codes and another text does not."""
    rows = np.tile(np.arange(30), 40)
    codes, embeddings = catalog.codes[rows], catalog.embeddings[rows].copy()
    embeddings[-1] += 1
    model = made_to_predict_items(catalog).eval()
    search, queries = model.item_search(Items(Catalog(codes, embeddings)), 5), torch.randn(7, 64)
    torch.testing.assert_close(search.scores(queries)[:, :30], scores_by_hand(model, queries, catalog)[:, :30])
    all_apart = model.item_search(Items(catalog), 5)
    torch.testing.assert_close(all_apart.scores(queries), scores_by_hand(model, queries, catalog))
    scores = search.scores(queries).unflatten(1, (40, 30))
    assert (scores[:, 1:-1] == scores[:, :1]).all() and (scores[:, -1, :-1] == scores[:, 0, :-1]).all()
    assert (scores[:, -1, -1] != scores[:, 0, -1]).all()


@torch.inference_mode()
def test_the_loss_of_last_items_only(model, catalog, sequences):
    """That of the plain batch at the slot before each history's last item; the histories of one item take no part."""
    batch = training_batch(sequences, catalog)
    logits = model.logits(model.hidden(batch)).unflatten(0, (-1, 4))[batch.last]
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets[batch.last].flatten())
    output = model(training_batch(sequences, catalog, last_only=True).to(CPU))
    assert output.targets == 4 * 6
    torch.testing.assert_close(output.mean, expected, rtol=1e-6, atol=0)


@torch.inference_mode()
def test_cache_gives_what_the_whole_history_gives(model, catalog):
    histories = [[4, 8, 15], [16, 23, 42, 7, 9, 1], [3]]
    batch = make_batch(Sequences.of(*histories), catalog)
    cache = DynamicCache()
    model.hidden(batch, cache)
    caches = split_cache(cache, batch.last)
    assert [one.items for one in caches] == [3, 6, 1]
    for item in (11, 12):
        users = [2, 0, 1]  # other company, other order
        histories, caches = [histories[user] + [item] for user in users], [caches[user] for user in users]
        items = np.full(3, item)
        codes, embeddings = torch.tensor(catalog.codes[items]).long(), torch.tensor(catalog.embed(items))
        logits, caches = append_item(model, caches, codes, embeddings)
        expected = model.next_item_logits(make_batch(Sequences.of(*histories), catalog))
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def own_item_and_the_one_before(queries, keys, per_item):
    back = queries[..., :, None] // per_item - keys[..., None, :] // per_item
    return (back >= 0) & (back <= 1)


@pytest.mark.parametrize("mask", [MASKS["causal"], own_item_and_the_one_before])
@torch.inference_mode()
def test_one_mask_decides_in_training_in_prediction_and_in_the_cache(model, catalog, monkeypatch, mask):
    histories = [[4, 8, 15, 2], [16, 23, 42, 7, 9, 1, 11], [3, 12]]
    batch = make_batch(Sequences.of(*histories), catalog)
    original = model.next_item_logits(batch)
    monkeypatch.setattr(model.gpt2model, "mask", mask)
    trained = model.pred_head(model.hidden(batch).unflatten(0, (-1, 4))[batch.last])
    assert not torch.allclose(trained, original, atol=1e-3)
    torch.testing.assert_close(model.next_item_logits(batch), trained, atol=1e-5, rtol=1e-5)
    earlier, cache = make_batch(Sequences.of(*(items[:-1] for items in histories)), catalog), DynamicCache()
    model.hidden(earlier, cache)
    new = np.array([items[-1] for items in histories])
    codes, embeddings = torch.tensor(catalog.codes[new]).long(), torch.tensor(catalog.embed(new))
    appended, _ = append_item(model, split_cache(cache, earlier.last), codes, embeddings)
    torch.testing.assert_close(appended, trained, atol=1e-5, rtol=1e-5)
    for row, items in enumerate(histories):
        alone = in_rows(model, make_batch(Sequences.of(items), catalog), "eager")
        torch.testing.assert_close(model.pred_head(alone[-4:]), trained[row], atol=1e-5, rtol=1e-5)


def test_a_mask_is_made_once_for_each_length_and_serves_training_after_prediction(model, catalog, sequences):
    modeling_gpt2_rec.history_mask.cache_clear()
    batch = make_batch(sequences, catalog)
    with torch.inference_mode():
        model.hidden(batch)
    model.hidden(batch).sum().backward()
    model.zero_grad()
    assert modeling_gpt2_rec.history_mask.cache_info().misses == len(batch.groups.shapes)


def test_checkpoint_round_trip_reads_every_size(model, catalog, sequences, tmp_path):
    path = tmp_path / "m.pt"
    save_state(path, model.state_dict(), {"config": {"heads": 4}, "step": 7})
    loaded, metadata = load_model(path, CPU)
    assert metadata["step"] == 7
    assert (loaded.config.layers, loaded.config.width, loaded.config.heads) == (2, 64, 4)
    batch = make_batch(sequences, catalog)
    with torch.inference_mode():
        assert torch.equal(loaded.hidden(batch), model.hidden(batch))
    with pytest.raises(InputError, match="--tf_layer 3 contradicts .* has 2 layers"):
        load_model(path, CPU, layers=3)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.json", "m.pt"]


def test_heads_are_read_from_the_weights_themselves(model, tmp_path, capsys):
    path = tmp_path / "m.pt"
    save_state(path, model.state_dict(), {"config": {"heads": 4}})
    path.with_suffix(".json").unlink()
    loaded, metadata = load_model(path, CPU)
    assert (loaded.config.heads, metadata, capsys.readouterr().out) == (4, {}, "")
    plain = RecGPT(RecGPTConfig(layers=2, width=64, embedding_width=32))
    plain.load_state_dict(torch.load(path, weights_only=True))  # as any program reads it
    path.with_suffix(".json").write_text('{"config": {"heads": 2}}')
    with pytest.raises(InputError, match="m.pt: heads is 4 by the weights, 2 by the JSON"):
        load_model(path, CPU)


def test_heads_that_nothing_tells_are_told(model, tmp_path, capsys):
    path = tmp_path / "m.pt"
    torch.save(dict(model.state_dict()), path)
    assert load_model(path, CPU)[0].config.heads == 1
    assert capsys.readouterr().out == f"{path} does not say how many attention heads it has: 1, one per 64 of width\n"


def test_a_json_of_other_weights_is_refused(model, tmp_path, monkeypatch):
    """A run that is killed between the two leaves the JSON of its weights beside those of an earlier run."""
    path, other = tmp_path / "m.pt", RecGPT(RecGPTConfig(layers=2, width=64, heads=2, embedding_width=32))
    save_state(path, model.state_dict(), {"config": {"heads": 4}})
    before, replace = path.read_bytes(), Path.replace

    def killed(self, target):
        if target == path:
            raise KeyboardInterrupt
        replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pathlib.Path.replace", killed)
        save_state(path, other.state_dict(), {"config": {"heads": 2}})
    assert path.read_bytes() == before and json.loads(path.with_suffix(".json").read_text())["config"]["heads"] == 2
    with pytest.raises(InputError, match="m.json was written with other weights than .*m.pt.* Remove it"):
        load_model(path, CPU)
    save_state(path, other.state_dict(), {"config": {"heads": 2}})
    assert load_model(path, CPU)[0].config.heads == 2
    metadata = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({"config": metadata["config"]}))  # as older ones are
    assert load_model(path, CPU)[0].config.heads == 2


def test_zip_parts_are_joined(model, tmp_path):
    import zipfile

    save_state(tmp_path / "m.pt", model.state_dict(), {"config": {"heads": 4}})
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
