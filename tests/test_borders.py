"""Library calls with what they were not made for: a clear ValueError, never another's answer."""

import copy
import json

import numpy as np
import pytest
import torch

import export
from ae_trainer import AutoEncoder, codebook_report
from model import RecGPT, RecGPTConfig, load_model
from tests import runs
from utils.data import Catalog, Sequences, group_by_length, make_batch, training_batch
from utils.errors import InputError
from utils.fsq import PUBLISHED
from utils.metrics import Ranks, TopKAccumulator, list_ranks, score_ranks
from utils.past_key_values import append_item, split_cache
from utils.search import beam_search, exact_search, rank_found, rank_targets
from utils.TimeLogger import TimeLogger
from utils.Trie import Trie

CODES = np.random.default_rng(0).integers(0, 20, (100, 4))
LOGITS = torch.randn(3, 4, PUBLISHED.vocabulary, generator=torch.Generator().manual_seed(0))
TRIE = Trie(CODES)


def catalog(**changed) -> Catalog:
    rng = np.random.default_rng(1)
    made = {"codes": rng.integers(0, 15360, (10, 4)), "embeddings": rng.standard_normal((10, 32)).astype(np.float32)}
    return Catalog(**(made | changed))


# Searches


@pytest.mark.parametrize("find", [exact_search, beam_search])
def test_searches_take_float32_and_whole_lengths_only(find):
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int32):
        with pytest.raises(ValueError, match=r"logits must be float32.*logits\.float\(\)"):
            find(LOGITS.to(dtype), TRIE, 5)
    with pytest.raises(ValueError, match="logits must be float32"):
        find(LOGITS.numpy(), TRIE, 5)
    for k in (2.5, "3", None, True, 0):
        with pytest.raises(ValueError, match="k must be 1 or more"):
            find(LOGITS, TRIE, k)
    with pytest.raises(ValueError, match="logits are on cpu, the catalog on meta"):
        find(LOGITS, TRIE.to("meta"), 5)
    assert find(LOGITS[:0], TRIE, 5).items.shape == (0, 5)
    assert torch.equal(find(LOGITS, TRIE, np.int64(5)).items, find(LOGITS.clone().requires_grad_(), TRIE, 5).items)


@pytest.mark.parametrize(
    "odd", [{"temperature": t} for t in (-1.0, 0, np.inf, np.nan)] + [{n: 0} for n in ("first", "per_beam", "beams")]
)
def test_beams_of_no_width_or_a_negative_temperature(odd):
    """A negative temperature gave the worst items first."""
    with pytest.raises(ValueError, match=f"{next(iter(odd))} must be"):
        beam_search(LOGITS, TRIE, 5, **odd)


def test_targets_are_one_row_of_codes_for_each_user():
    """One row for all users was every user's target."""
    targets = torch.tensor(CODES[:3])
    for find, rank in ((exact_search, rank_targets), (beam_search, rank_found)):
        top = find(LOGITS, TRIE, 5)
        others = targets[:1], targets[:2], targets[:, :3], targets[0]
        for odd in (*others, targets.float(), targets - 100, targets + 15360):
            with pytest.raises(ValueError, match="targets must be"):
                rank(LOGITS, TRIE, top, odd)
        with pytest.raises(ValueError, match="targets must be"):
            rank(LOGITS[:2], TRIE, top, targets)
        assert torch.equal(rank(LOGITS, TRIE, top, targets).tied, rank(LOGITS, TRIE, top, targets.int()).tied)


def test_a_target_that_is_no_candidate_is_not_found():
    """It had the rank of the first item of the catalog."""
    logits = LOGITS.clone()
    for place, code in enumerate(TRIE.codes[0].tolist()):
        logits[:, place, code] += 20
    none = torch.tensor([[9999, 1, 2, 3]] * 3)
    assert rank_found(logits, TRIE, beam_search(logits, TRIE, 5), none).tied.tolist() == [0, 0, 0]
    empty = Trie(np.empty((0, 4), dtype=int))
    for find, rank in ((exact_search, rank_targets), (beam_search, rank_found)):
        assert rank(LOGITS, empty, find(LOGITS, empty, 5), none).tied.tolist() == [0, 0, 0]


# Trie


def test_a_prefix_may_be_of_any_whole_numbers_and_of_nothing_else():
    prefixes = CODES[:2, :2]
    expected = TRIE.find(torch.tensor(prefixes))
    for same in (prefixes, prefixes.tolist(), torch.tensor(prefixes.astype(np.uint16)), prefixes.astype(np.int8)):
        assert torch.equal(TRIE.find(same), expected)
    assert TRIE.next_codes([]).tolist() == sorted(set(CODES[:, 0].tolist()))
    for odd in (3, torch.tensor(3), prefixes + 0.5, torch.tensor([[True, False]]), [["a"]]):
        with pytest.raises(ValueError, match=r"codes must be \(\.\.\., d\) whole numbers"):
            TRIE.find(odd)
    with pytest.raises(ValueError, match=r"one prefix \(d,\)"):
        TRIE.next_codes(torch.tensor(CODES[:1, :2]))  # was taken for one of a single code
    with pytest.raises(ValueError, match="an item has 4 codes"):
        TRIE.items_of(torch.tensor(CODES[:2]))


# Histories


@pytest.mark.parametrize(
    "rows", [[-1], [-2], [0, -2], [3], [True, False, True], [0.0, 1.0], [[0, 1]], 1], ids=lambda rows: str(rows)
)
def test_histories_are_chosen_by_their_numbers(rows):
    """Row -2 gave the last history under the name of the one before."""
    with pytest.raises(ValueError, match="rows must"):
        Sequences.of([1, 2, 3], [4], [5, 6]).select(np.array(rows))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint64])
def test_rows_of_few_bits_do_not_wrap(dtype):
    many = Sequences.of(*([item] for item in range(300)))
    last = 127 if dtype == np.int8 else 255
    assert many.select(np.array([0, last], dtype=dtype)).lists() == [[0], [last]]


def test_windows_and_targets_of_nothing():
    for window in (0, -1, 2.5, None, np.nan):
        with pytest.raises(ValueError, match="window must be 1 or more"):
            Sequences.of([1, 2], [3]).last(window)
    with pytest.raises(ValueError, match="history 1 is empty"):
        Sequences.of([1, 2], [], [3]).split_targets()


@pytest.mark.parametrize("lengths", [[], [1, 5], [3, 10, 1], [3, 0], [3, -1], [3.0, 2.0], 3], ids=str)
def test_groups_are_of_lengths_longest_first(lengths):
    """Others lost items, or never came to an end."""
    with pytest.raises(ValueError, match="lengths must be"):
        group_by_length(np.array(lengths))
    assert group_by_length(np.array([9, 8, 3], dtype=np.uint8)).shapes == ((2, 9), (1, 3))


@pytest.mark.parametrize("make", [make_batch, training_batch])
def test_batches_of_odd_histories_or_catalogs(make):
    for items, offsets, said in (
        (np.array([1.0, 2.0]), np.array([0, 2]), "items must be"),
        (np.array([True, False] * 5), np.array([0, 10]), "items must be"),
        ([1, 2], [0, 2], "items must be"),
        (np.array([1, 2]), np.array([0.0, 2.0]), "offsets must be"),
        (np.array([1, 2]), np.array([0, 3]), "offsets must lie in"),
        (np.array([1, 2, 3]), np.array([-2, 0, 2]), "offsets must lie in"),
    ):
        with pytest.raises(ValueError, match=said):
            make(Sequences(None, items, offsets), catalog())
    for changed, said in (
        ({"codes": np.full((10, 4), 15360)}, "codes must lie in"),
        ({"codes": np.full((10, 4), -1)}, "codes must lie in"),
        ({"codes": np.full((10, 4), 1.7)}, r"codes must be \(N, 4\) whole numbers"),
        ({"codes": np.zeros((10, 3), dtype=int)}, r"codes must be \(N, 4\) whole numbers"),
        ({"rows": np.full(10, -1)}, "rows of the catalog must lie in"),
        ({"rows": np.full(10, 10)}, "rows of the catalog must lie in"),
        ({"embeddings": np.ones((5, 32), np.float32)}, "rows of the catalog must lie in"),
    ):
        with pytest.raises(ValueError, match=said):
            make(Sequences.of([1, 9, 2]), catalog(**changed))


# Metrics


def test_no_item_is_no_hit_and_nobody_has_the_targets_of_others():
    lists, nan = torch.tensor([[3, -1, -1], [1, 2, 3]]), torch.nan
    assert list_ranks(lists, torch.tensor([-1, 2])).tied.tolist() == [0, 1]
    for odd in (lambda: list_ranks(lists, torch.tensor([3])), lambda: list_ranks(lists[:1], torch.tensor([3, 1]))):
        with pytest.raises(ValueError, match="one target for each list"):
            odd()
    scores = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    for odd in ([0], [0, 3], [0, 1, 2]):
        with pytest.raises(ValueError, match="places must"):
            score_ranks(scores, torch.tensor(odd))
    for row in ([nan, 1.0, 2.0], [0.0, nan, 2.0]):
        with pytest.raises(ValueError, match="scores must be numbers"):
            score_ranks(torch.tensor([row]), torch.tensor([1]))


def test_metrics_of_odd_lengths_and_ranks():
    for ks in ([], [0], [-1, 3], [2.5]):
        with pytest.raises(ValueError, match="ks must be"):
            TopKAccumulator(ks)
    accumulator = TopKAccumulator([1, 10**15])  # more than any memory holds
    accumulator.accumulate(Ranks(torch.tensor([0, 4]), torch.tensor([2, 1])))
    assert accumulator.reduce()[f"hit@{10**15}"] == 1.0
    assert accumulator.reduce()["mrr"] == pytest.approx(((1 + 1 / 2) / 2 + 1 / 5) / 2)
    for above, tied in (([-1], [1]), ([0], [-1]), ([0, 1], [1]), ([0.0], [1.0])):
        with pytest.raises(ValueError, match="ranks must be"):
            accumulator.accumulate(Ranks(torch.tensor(above), torch.tensor(tied)))


# Model


@pytest.mark.parametrize(
    "odd",
    [{"layers": 0}, {"width": 0}, {"heads": -1}, {"heads": 3}, {"embedding_width": 30}, {"embedding_width": 0}]
    + [{"window": 0}, {"dropout": 1.5}, {"layers": 2.0}],
    ids=str,
)
def test_sizes_that_no_model_has(odd):
    with pytest.raises(ValueError, match="RecGPTConfig: "):
        RecGPTConfig(**({"layers": 1, "width": 64, "embedding_width": 32, "window": 8} | odd))


@pytest.fixture(scope="module")
def model() -> RecGPT:
    torch.manual_seed(0)
    return RecGPT(RecGPTConfig(layers=2, width=64, heads=2, embedding_width=32, window=8)).eval()


def test_predictions_are_not_drawn_at_random(model):
    batch = make_batch(Sequences.of([1, 2], [3]), catalog())
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        copy.deepcopy(model).train().next_item_logits(batch)
    with pytest.raises(ValueError, match="nothing to predict"):
        model(batch)
    with pytest.raises(ValueError, match="embeddings are 64 wide, the model reads 32"):
        model.next_item_logits(make_batch(Sequences.of([1, 2]), catalog(embeddings=np.ones((10, 64), np.float32))))


def test_an_appended_item_is_one_for_each_history(model):
    """One item for three users went to all of them."""
    from transformers import DynamicCache

    items, cache = catalog(), DynamicCache()
    batch = make_batch(Sequences.of([1, 2, 3], [4], [5, 6]), items)
    with torch.inference_mode():
        model.hidden(batch, cache)
    caches = split_cache(cache, batch.last)
    codes, embeddings = torch.tensor(items.codes[7:]), torch.tensor(items.embeddings[7:])
    assert append_item(model, caches, codes, embeddings)[0].shape == (3, 4, PUBLISHED.vocabulary)
    fewer = (codes[:1], embeddings[:1]), (codes, embeddings[:1]), (codes[:1], embeddings)
    values = (codes - 20000, embeddings), (codes * 0 + 15360, embeddings)
    for odd in (
        *((caches, *pair) for pair in (*fewer, *values, (codes, embeddings.double()), (codes, embeddings * torch.nan))),
        (caches[:1], codes[0], embeddings[0]),
        ([], codes[:0], embeddings[:0]),
    ):
        with pytest.raises(ValueError, match="must be"):
            append_item(model, *odd)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        append_item(copy.deepcopy(model).train(), caches, codes, embeddings)


def test_exported_weights_know_their_heads(tmp_path, monkeypatch, capsys):
    """At the release's width, nothing would tell that others were taken."""
    path, out = tmp_path / "model.pt", tmp_path / "exported.pt"
    from utils.checkpoint import save_state

    made = RecGPT(RecGPTConfig(layers=1, width=768, heads=8, embedding_width=32, window=2))
    save_state(path, made.state_dict(), {"config": {"heads": 8}})
    monkeypatch.setattr("sys.argv", ["export", "--input", str(path), "--output", str(out)])
    export.main()
    assert load_model(out, torch.device("cpu"))[0].config.heads == 8


# Tokenizer


def embeddings_of(items: int, width: int = 64) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((items, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1.0, 1e20])
def test_the_start_does_not_depend_on_the_scale(scale):
    """Small numbers all came to one code."""
    tokenizer = AutoEncoder(64).eval()
    tokenizer.start_from(embeddings_of(400) * np.float32(scale))
    report = codebook_report(tokenizer.tokenize(embeddings_of(400) * np.float32(scale)))
    assert report["codes_used"] > 1000


def test_what_does_not_vary_is_not_made_large():
    """Directions without variance were scaled by a million: rounding decided the codes."""
    one = embeddings_of(1)
    for rows in (np.repeat(one, 50, 0), embeddings_of(2), np.ones((9, 64), np.float32), one):
        tokenizer = AutoEncoder(64).eval()
        tokenizer.start_from(rows)
        assert tokenizer.quantizer.project_in.weight.abs().max() < 1e3
        nudged = tokenizer.tokenize(np.nextafter(rows, np.float32(2)))
        assert np.array_equal(tokenizer.tokenize(rows), nudged)
    assert codebook_report(tokenizer.tokenize(embeddings_of(1)))["items"] == 1


def test_rows_that_are_no_embeddings():
    tokenizer = AutoEncoder(64).eval()
    for start in (embeddings_of(5, 32), embeddings_of(5)[0], embeddings_of(0), embeddings_of(5) * np.nan):
        with pytest.raises((ValueError, InputError), match="expect|NaN"):
            tokenizer.start_from(start)
    for odd in (embeddings_of(5)[0], embeddings_of(5) * 1j, [[1.0] * 64]):
        with pytest.raises((ValueError, InputError), match="expect"):
            tokenizer.tokenize(odd)
    for size in (0, -1):  # with -1, the codes were what the memory held before
        with pytest.raises(ValueError, match="batch_size must be 1 or more"):
            tokenizer.tokenize(embeddings_of(5), batch_size=size)
    with pytest.raises(ValueError, match="codes must"):
        codebook_report(np.full((2, 4), 15360))


# Runs


@pytest.mark.parametrize("half", ["{", '{"st', '{"step": 4, "lo'])
def test_any_beginning_of_a_record_is_cut_off(tmp_path, half):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n' + half)
    with TimeLogger(3, path=path) as logger:
        logger.log({"eval_loss": 1.0}, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_run_that_goes_on_elsewhere_removes_nothing_of_others_there(tmp_path):
    """--keep took away files that only had the names of the earlier part's."""
    runs.make_data(tmp_path, 60)
    common = "--data_path pt --batch_size 6 --tf_layer 1 --width 32 --epoch 2 --device cpu"
    runs.finish(tmp_path, f"{common} --ckpt_dir one --keep 2 --max_steps 3")
    (tmp_path / "two").mkdir()
    theirs = [tmp_path / f"two/layer_1_epoch_0_{name}" for name in ("model_02.pt", "model_03.pt", "step_3.resume")]
    for path in theirs:
        path.write_bytes(b"of another run")
    runs.finish(tmp_path, f"{common} --resume one --ckpt_dir two --max_steps 7")
    assert all(path.read_bytes() == b"of another run" for path in theirs)
    assert len(list((tmp_path / "two").glob("*.resume"))) == 3  # theirs, and the last two
