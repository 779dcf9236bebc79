"""Parts that can be turned off: what may then influence what, and that a checkpoint says what it is."""

import json
import math

import numpy as np
import pytest
import torch

import model as model_module
from ae_trainer import load_tokenizer
from model import RecGPT, RecGPTConfig, load_model
from predict import make_search
from tests import runs
from utils.checkpoint import save_state
from utils.data import Catalog, Sequences, make_batch, training_batch
from utils.datasets import Origin, check_fit
from utils.errors import InputError
from utils.fsq import Codebook
from utils.masks import MASKS
from utils.metrics import Ranks, user_metrics
from utils.random_codes import RandomCodes
from utils.search import beam_search, exact_search, free_search
from utils.Trie import Trie

ITEMS, WIDTH = 40, 32
SIZES = {"layers": 2, "width": 64, "heads": 4, "embedding_width": WIDTH}


@pytest.fixture
def catalog():
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((ITEMS, WIDTH), dtype=np.float32)
    return Catalog(rng.integers(0, 15360, (ITEMS, 4)).astype(np.int16), embeddings)


def drawn(**parts):
    torch.manual_seed(0)
    return RecGPT(RecGPTConfig(**SIZES, **parts)).eval()


# Attention


@torch.inference_mode()
def test_under_causal_attention_a_code_sees_none_that_follows_it(catalog):
    """The third code of the second item: seen by itself, the fourth, and the third item; item-block shows it to all."""
    batch = make_batch(Sequences.of([1, 2, 3]), catalog)
    codes = batch.codes.clone()
    codes[1, 2] = (codes[1, 2] + 1) % 15360
    for attention, blind in (("causal", 6), ("item_block", 4)):
        model = drawn(attention=attention)
        change = (model.hidden(batch) - model.hidden(batch._replace(codes=codes))).abs().amax(-1)
        assert (change[:blind] == 0).all() and (change[blind:] > 1e-6).all(), attention


@pytest.mark.parametrize("name", MASKS)
def test_a_loaded_model_predicts_by_the_mask_that_it_was_trained_with(catalog, tmp_path, name):
    """From the weights alone, from the JSON beside them, and from a directory."""
    model, batch = drawn(attention=name), make_batch(Sequences.of([1, 2, 3], [4]), catalog)
    expected = model.next_item_logits(batch)
    path = tmp_path / "m.pt"
    save_state(path, model.state_dict(), {"config": model.config.noted()})
    model.save_pretrained(tmp_path / "folder")
    for where in (path, tmp_path / "folder"):
        torch.testing.assert_close(load_model(where, "cpu")[0].next_item_logits(batch), expected, rtol=0, atol=0)
    path.with_suffix(".json").unlink()
    torch.testing.assert_close(load_model(path, "cpu")[0].next_item_logits(batch), expected, rtol=0, atol=0)
    beside = tmp_path / "folder/config.json"
    config = json.loads(beside.read_text())
    beside.write_text(json.dumps({one: value for one, value in config.items() if one != "attention"}))
    assert load_model(tmp_path / "folder", "cpu")[0].config == model.config  # as the weights say
    beside.write_text(json.dumps({**config, "attention": "full", "heads": 2}))
    with pytest.raises(InputError, match="by the weights"):
        load_model(tmp_path / "folder", "cpu")
    save_state(tmp_path / "other.pt", model.state_dict(), {"config": model.config.noted() | {"attention": "window"}})
    with pytest.raises(InputError, match="trained with --attention 'window', and this program has only item_block, ca"):
        load_model(tmp_path / "other.pt", "cpu")
    path.with_suffix(".json").write_text(json.dumps({"config": {"attention": "full"}}))
    with pytest.raises(InputError, match=f"attention is '{name}' by the weights, 'full' by the JSON"):
        load_model(path, "cpu")


@pytest.mark.parametrize("odd", [("causal",), ["causal"], b"causal", 1.5, "x" * 300, {"a": 1}])
def test_a_note_that_no_model_has_is_refused_and_not_passed_over(tmp_path, odd):
    save_state(tmp_path / "m.pt", drawn().state_dict(), {"config": {}})
    (tmp_path / "m.json").unlink()
    state = torch.load(tmp_path / "m.pt", weights_only=True)
    state._metadata[""]["attention"] = odd
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(InputError, match="attention"):
        load_model(tmp_path / "m.pt", "cpu")


def test_models_that_differ_by_their_mask_alone_have_other_fingerprints():
    one, other = drawn(), drawn(attention="causal")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.fingerprint() != other.fingerprint()


# Auxiliary embeddings


@pytest.mark.parametrize("predicts", ["codes", "items"])
@torch.inference_mode()
def test_without_auxiliary_embeddings_texts_say_nothing(catalog, tmp_path, predicts):
    other = Catalog(catalog.codes, catalog.embeddings[::-1])
    batches = [make_batch(Sequences.of([1, 2, 3], [4]), each) for each in (catalog, other)]
    for auxiliary in (False, True):
        model = drawn(auxiliary=auxiliary, predicts=predicts)
        one, two = (model.next_item(batch) for batch in batches)
        assert torch.equal(one, two) == (not auxiliary)
        names = {name.split(".")[0] for name in model.state_dict()}
        assert {"linear_layer", "norm_aux"}.isdisjoint(names) == (not auxiliary)
        save_state(tmp_path / "m.pt", model.state_dict(), {"config": model.config.noted()})
        (tmp_path / "m.json").unlink()
        loaded, _ = load_model(tmp_path / "m.pt", "cpu")
        assert loaded.config == RecGPTConfig(**SIZES, auxiliary=auxiliary, predicts=predicts)
        assert torch.equal(loaded.next_item(batches[0]), one)
        items = [model_module.Items(each) for each in (catalog, other)]
        assert torch.equal(*(model.item_vectors(each) for each in items)) == (not auxiliary)


def test_without_auxiliary_embeddings_training_learns_from_codes(catalog):
    model = drawn(auxiliary=False).train()
    model(training_batch(Sequences.of([1, 2, 3], [4, 5]), catalog)).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# Random codes


def test_random_codes_are_of_the_text_and_the_seed_alone():
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((500, WIDTH), dtype=np.float32)
    embeddings[7] = embeddings[3]
    embeddings[11, 5] = 0
    near = embeddings * 1.001  # like texts
    one = RandomCodes(0).tokenize(embeddings)
    assert one.shape == (500, 4) and one.dtype == np.int16 and (one[7] == one[3]).all()
    order = rng.permutation(500)
    np.testing.assert_array_equal(RandomCodes(0).tokenize(embeddings[order].astype(np.float64)), one[order])
    for stored in (embeddings.astype(np.float16), np.where(embeddings == 0, -0.0, embeddings)):
        np.testing.assert_array_equal(RandomCodes(0).tokenize(stored), one)
    for other in (RandomCodes(1).tokenize(embeddings), RandomCodes(0).tokenize(near)):
        assert (other == one).mean() < 0.01
    assert 0 <= one.min() < 100 and 15260 <= one.max() < 15360 and abs(one.mean() / 7679.5 - 1) < 0.05
    few = RandomCodes(0, Codebook((2, 3), 7)).tokenize(embeddings)
    assert few.shape == (500, 7) and np.unique(few).tolist() == list(range(6))


def test_codes_of_another_seed_or_of_a_tokenizer_do_not_fit():
    assert load_tokenizer("random:3") == RandomCodes(3) == RandomCodes.named("random:3")
    assert RandomCodes.named("vae_ckpt/random.pt") is None
    trained = Origin("the model", WIDTH, None, RandomCodes(3).fingerprint())
    check_fit(trained, trained)
    for other in (RandomCodes(4).fingerprint(), "0123456789abcdef"):
        with pytest.raises(InputError, match="was trained on codes of tokenizer random:3"):
            check_fit(trained, trained._replace(tokenizer=other))


# Search


def best_rows(log_probs, k):
    """All rows of codes, best first, by trying each: (rows, scores)."""
    per_item, vocabulary = log_probs.shape
    rows = np.stack(np.meshgrid(*[np.arange(vocabulary)] * per_item, indexing="ij"), -1).reshape(-1, per_item)
    scores = sum(log_probs[slot, rows[:, slot]] for slot in range(per_item))
    order = np.argsort(-scores.numpy(), kind="stable")[:k]
    return rows[order], scores[order]


@pytest.mark.parametrize("codebook", [Codebook((2, 3), 3), Codebook((5,), 1), Codebook((3,), 5)])
@pytest.mark.parametrize("seed", range(3))
def test_free_search_lists_the_likeliest_codes_whether_or_not_they_are_items(codebook, seed):
    rng = np.random.default_rng(seed)
    catalog = rng.integers(0, codebook.size, (12, codebook.per_item))
    trie, k = Trie(catalog, codebook=codebook), 15
    logits = torch.from_numpy(rng.normal(size=(6, codebook.per_item, codebook.vocabulary))).float()
    top = free_search(logits, trie, k)
    for user, log_probs in enumerate(logits.log_softmax(-1)):
        expected = []
        for row, score in zip(*best_rows(log_probs, k), strict=True):
            sharing = np.flatnonzero((catalog == row).all(1)).tolist()
            expected += [(item, score.item()) for item in sharing or [-1]]
        expected = expected[:k]
        found = list(zip(top.items[user].tolist(), top.scores[user].tolist(), strict=True))[: len(expected)]
        assert [item for item, _ in found] == [item for item, _ in expected]
        np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], atol=1e-5)
        assert (top.scores[user, len(expected) :] == -math.inf).all()
    greedy = logits.argmax(-1)
    assert ((top.items[:, 0] >= 0) == trie.has_item(greedy)).all()


def test_codes_that_are_no_items_cost_places_in_ranks_and_lists():
    codebook = Codebook((2, 2), 2)
    catalog = np.array([[0, 0], [1, 1], [1, 1]])
    logits = torch.tensor([[[4.0, 2, 0, 0, 0], [3.0, 0, 0, 0, 0]]])  # rows by score: 00, 10, 0x, 1x: 11 is no. 6
    for target, above, tied in ((0, 0, 1), (1, None, 0)):
        find = make_search("free", Trie(catalog, codebook=codebook), 4, catalog, np.array([target]), ids_decide=False)
        found = find(logits, np.array([0]))
        assert found.tied.tolist() == [tied] and (above is None or found.above.tolist() == [above])
        assert found.items.tolist() == [[0, -1, -1, -1]] and torch.isfinite(found.scores).all()
    find = make_search("free", Trie(catalog, codebook=codebook), 20, catalog, np.array([1]), ids_decide=False)
    found = find(logits, np.array([0]))
    places = found.items[0].tolist()
    assert places[places.index(1) : places.index(1) + 2] == [1, 2]
    better = int((found.scores[0] > found.scores[0, places.index(1)]).sum())
    assert found.above.tolist() == [better] and better >= 5 and found.tied.item() >= 2
    hits = user_metrics(Ranks(found.above, found.tied), [5, 20])
    assert hits[0].tolist()[0] == 0


def test_free_search_may_list_more_than_the_catalog_has():
    codebook = Codebook((2, 2), 2)
    catalog = np.array([[0, 0], [1, 1]])
    find = make_search("free", Trie(catalog, codebook=codebook), 25, catalog, np.array([1]), ids_decide=False)
    found = find(torch.randn(1, 2, 5), np.array([0]))
    assert sorted(found.items[0].tolist()) == [-1] * 23 + [0, 1] and torch.isfinite(found.scores).all()


# Other numbers of codes and levels


@pytest.mark.parametrize("codebook", [Codebook((2, 3), 3), Codebook((7,), 1), Codebook((3, 2, 2), 6)])
@pytest.mark.parametrize("seed", range(3))
def test_search_is_exact_with_other_codes(codebook, seed):
    rng = np.random.default_rng(seed)
    catalog = rng.integers(0, codebook.size, (60, codebook.per_item))
    trie, logits = Trie(catalog, codebook=codebook), torch.randn(5, codebook.per_item, codebook.vocabulary)
    log_probs = logits.log_softmax(-1)
    scores = sum(log_probs[:, slot, catalog[:, slot]] for slot in range(codebook.per_item))
    for top in (
        exact_search(logits, trie, 10),
        beam_search(logits, trie, 10, temperature=1.0, first=999, per_beam=999, beams=9999),
    ):
        torch.testing.assert_close(top.scores, scores.topk(10).values)
        torch.testing.assert_close(scores.gather(1, top.items), top.scores)


def test_a_codebook_of_other_sizes_is_refused_everywhere(catalog):
    codebook = Codebook((8, 8), 4)
    other = Catalog((catalog.codes % 64).astype(np.int16), catalog.embeddings, codebook=codebook)
    with pytest.raises(ValueError, match="codes must be numbers below 64|codes"):
        Catalog(catalog.codes, catalog.embeddings, codebook=codebook).codes_of(np.arange(5))
    three = Catalog(other.codes[:, :3], catalog.embeddings, codebook=Codebook((8, 8), 3))
    with pytest.raises(ValueError, match="items have 3 codes, the model reads 4"):
        drawn().hidden(make_batch(Sequences.of([1, 2]), three))
    trained = Origin("the model", WIDTH, None, None)
    with pytest.raises(InputError, match=r"reads 4 codes of levels \(8, 8, 8, 6, 5\) for each item, and those of x"):
        check_fit(trained, Origin("x", WIDTH, None, None, codebook))


def test_a_trained_run_says_all_that_it_is(tmp_path):
    """Flags of pre-training lie in the checkpoint, hold for a resumed run and for one started from it."""
    runs.make_data(tmp_path, 30)
    flags = "--data_path pt --width 64 --tf_layer 1 --device cpu --log_file log.jsonl --batch_size 8 "
    runs.finish(tmp_path, flags + "--epoch 1 --attention causal --no_auxiliary --ckpt_dir a")
    loaded, metadata = load_model(tmp_path / "a/layer_1_epoch_0.pt", "cpu")
    assert (loaded.config.attention, loaded.config.auxiliary) == ("causal", False)
    assert metadata["config"] == loaded.config.noted()
    said = runs.finish(tmp_path, flags + "--epoch 2 --ckpt_dir a --resume --attention item_block", expect=2)
    assert "--attention item_block contradicts" in said
    said = runs.finish(tmp_path, flags + "--init_from a/layer_1_epoch_0.pt --no_auxiliary False --ckpt_dir b", expect=2)
    assert "--no_auxiliary False contradicts" in said
    runs.finish(tmp_path, flags + "--epoch 2 --ckpt_dir a --resume")
    runs.finish(tmp_path, flags + "--epoch 1 --ckpt_dir b --init_from a/layer_1_epoch_0.pt")
    assert load_model(tmp_path / "b/layer_1_epoch_0.pt", "cpu")[0].config == loaded.config
    flags = "--input a/layer_1_epoch_0.pt --output released.pt"
    said = runs.finish(tmp_path, flags, expect=2, script="export")
    assert "has attention causal, and the published program knows only item_block" in said
    runs.finish(tmp_path, "--input a/layer_1_epoch_0.pt --pretrained shared", script="export")
    assert load_model(tmp_path / "shared", "cpu")[0].config == loaded.config
    assert "reads a history as codes alone" in (tmp_path / "shared/README.md").read_text()
