"""Against the figures of the published system, module by module and through the commands."""

import json

import numpy as np
import pytest
import torch

from ae_trainer import load_tokenizer
from model import load_model
from utils.data import Catalog, Sequences, make_batch, training_batch
from utils.search import exact_search
from utils.Trie import Trie

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(house):
    return load_model(house / "ckpt/recgpt_layer_3_weight.pt", CPU)[0]


@pytest.fixture(scope="module")
def catalog(reference):
    return Catalog(reference.figures["tokens"], reference.embeddings)


@pytest.fixture(scope="module")
def sequences(reference):
    return Sequences.of(*reference.histories)


def test_tokenizer(house, reference):
    tokenizer = load_tokenizer(house / "vae_ckpt/vae_len4_fsq88865_ep90.pt")
    embeddings = torch.from_numpy(reference.embeddings)
    with torch.inference_mode():
        quantized, codes = tokenizer.quantizer(tokenizer.encoder(embeddings))
        reconstruction = tokenizer.decoder(quantized)
    np.testing.assert_array_equal(codes.numpy(), reference.figures["tokens"])
    np.testing.assert_array_equal(tokenizer.tokenize(reference.embeddings), reference.figures["tokens"])
    np.testing.assert_allclose(quantized[:8].numpy(), reference.figures["quantized"], atol=1e-4)
    np.testing.assert_allclose(reconstruction[:8].numpy(), reference.figures["reconstruction"], atol=1e-4)
    assert (reconstruction - embeddings).abs().mean().item() == pytest.approx(reference.figures["l1"], abs=1e-4)


@torch.inference_mode()
def test_losses(model, catalog, sequences, reference):
    size = int(reference.figures["batch"])
    losses = [
        model(training_batch(sequences.last(256).select(np.arange(start, start + size)), catalog)).mean.item()
        for start in range(0, len(sequences), size)
    ]
    np.testing.assert_allclose(losses, reference.figures["batch_losses"], atol=1e-4)


@torch.inference_mode()
def test_hidden_states(model, catalog, sequences, reference):
    hidden = [
        model.hidden(make_batch(sequences.last(256).select(np.array([row])), catalog))[::5]
        for row in reference.figures["hidden_rows"]
    ]
    np.testing.assert_allclose(torch.cat(hidden).numpy(), reference.figures["hidden"], atol=1e-4)


@torch.inference_mode()
def test_logits_and_exact_ranking(model, catalog, sequences, reference):
    histories, _ = sequences.split_targets()
    logits = model.next_item_logits(make_batch(histories.last(255), catalog))
    np.testing.assert_allclose(logits[:2].numpy(), reference.figures["last_logits"], atol=1e-4)
    top = exact_search(logits, Trie(catalog.codes), 20)
    np.testing.assert_array_equal(top.items.numpy(), reference.figures["exact_top"])
    np.testing.assert_allclose(top.scores.numpy(), reference.figures["exact_score"], atol=1e-4)


def change_by_ties(figures) -> np.ndarray:
    """What the six figures of exact search, in which ids decide, gain where targets count with their mean rank."""
    change, tied = np.zeros(6), 0
    for target, top in zip(figures["targets"], figures["exact_top"], strict=True):
        (sharing,) = np.nonzero((figures["tokens"] == figures["tokens"][target]).all(1))
        if len(sharing) > 1 and target in top:
            first = top.tolist().index(sharing[0])
            place = top.tolist().index(target)
            gains = [
                [
                    (rank < k) / (1 if metric == "hit" else np.log2(rank + 2))
                    for k in (1, 3, 5)
                    for metric in ("hit", "ndcg")
                ]
                for rank in range(first, first + len(sharing))
            ]
            change, tied = change + np.mean(gains, 0) - gains[place - first], tied + 1
    assert tied, "the case has a target that shares its codes"
    return change / len(figures["targets"])


PREDICT = "python predict.py --tf_layer 3 --test_batch_size {batch} --ckpt_path ./ckpt/recgpt_layer_3_weight.pt "


@pytest.mark.parametrize(
    ("protocol", "prefix", "batch"),
    [("corrected", "exact", 12), ("corrected", "exact", 5), ("released", "released", 12)],
)
def test_predict_command(house, reference, protocol, prefix, batch):
    command = PREDICT.format(batch=batch) + f"--protocol {protocol} "
    house.type(command + "--dataset steam --topk 20 --output lists.jsonl")
    lists = [json.loads(line) for line in (house / "lists.jsonl").read_text().splitlines()]
    assert [found["user"] for found in lists] == list(range(len(reference.histories)))
    for found, top, scores in zip(
        lists, reference.figures[f"{prefix}_top"], reference.figures[f"{prefix}_score"], strict=True
    ):
        assert found["items"] == top[top >= 0].tolist()
        np.testing.assert_allclose(found["scores"], scores[top >= 0], rtol=2e-6, atol=1e-4)

    (house / "results.jsonl").unlink(missing_ok=True)
    done = house.type(command + "--dataset targets --results results.jsonl")
    results = [json.loads(line) for line in (house / "results.jsonl").read_text().splitlines()]
    ours = next(found for found in results if found["method"] == "RecGPT" and found["group"] == "all users")
    names = ["hit@1", "ndcg@1", "hit@3", "ndcg@3", "hit@5", "ndcg@5"]
    expected = reference.figures[f"{prefix}_metrics"]
    if protocol == "corrected":
        expected = expected + change_by_ties(reference.figures)
    np.testing.assert_allclose([ours[name] for name in names], expected, atol=1e-6)
    line = ", ".join(f"{name} = {value:.4f}" for name, value in zip(names, expected, strict=True))
    assert done.stdout.strip().splitlines()[-1] == line


@pytest.mark.parametrize("protocol", ["corrected", "released"])
def test_eval_command(house, reference, protocol):
    (house / "losses.jsonl").unlink(missing_ok=True)
    batch = int(reference.figures["batch"])
    done = house.type(
        f"python eval.py --tf_layer 3 --test_batch_size {batch} --ckpt_path ./ckpt/recgpt_layer_3_weight.pt "
        f"--protocol {protocol} --results losses.jsonl"
    )
    result = json.loads((house / "losses.jsonl").read_text())
    losses = reference.figures["batch_losses"]
    targets = [
        sum(min(len(items), 256) - 1 for items in reference.histories[start : start + batch])
        for start in range(0, len(reference.histories), batch)
    ]
    assert result["published"] == pytest.approx(losses.mean(), abs=1e-4)
    assert result["loss"] == pytest.approx(np.average(losses, weights=targets), abs=1e-4)
    assert done.stdout.strip().endswith("best: ckpt/recgpt_layer_3_weight.pt")
