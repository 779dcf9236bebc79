"""Choose among checkpoints by their loss on held-out domains (data/eval).

    python eval.py --tf_layer 3 --test_batch_size 96 --ckpt_path ./ckpt/recgpt_layer_3_weight.pt
    python eval.py --ckpt_path ckpt
    python eval.py --ckpt_path "ckpt/layer_3_epoch_0_model_*.pt"

The loss is the mean over target tokens, in nats; the published figure, the mean of the batches' means, stands beside
it. Ends with one line per checkpoint, best first, and the name of the best. Where the folder's dataset.json says
"targets": "last" (data_processing/make_pre_train.py), only the last item of each history is a target.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from model import RecGPT, load_model
from utils.checkpoint import ITEMS, find_checkpoints
from utils.cli import parser, positive_int, run
from utils.data import make_batch, training_batch
from utils.datasets import HELD_OUT, Interactions, Origin, check_fit, load_eval
from utils.errors import InputError
from utils.files import check_writable
from utils.metrics import score_ranks, user_metrics
from utils.rows import about_files, about_model, about_program
from utils.scores import distinct_items
from utils.search import search_and_rank
from utils.Trie import Trie
from utils.util import add_device_flags, append_results, pick_device, print_table

TOP = 10  # of the NDCG by which fine-tuning may choose its best weights


class EvalLoss(NamedTuple):
    """Losses of one checkpoint, in nats, and its NDCG."""

    loss: float  # mean over all target tokens
    published: float  # mean of the batches' means
    ndcg: float | None = None  # NDCG@10 of the last items among the whole catalog, where it was asked for


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("--data_path", default="./data/eval", help="folder with eval.pkl and its companions")
    paths = "checkpoints, folders or quoted patterns"
    flags.add_argument("--ckpt_path", nargs="+", default=["./ckpt"], metavar="PATH", help=paths)
    flags.add_argument("--tf_layer", type=positive_int, help="transformer layers, read from the checkpoint")
    flags.add_argument("--test_batch_size", type=positive_int, default=32, help="histories per batch")
    meaning = "rank by the loss per target token, or by the published mean of batch means"
    flags.add_argument("--protocol", choices=("corrected", "released"), default="corrected", help=meaning)
    flags.add_argument("--seed", help=argparse.SUPPRESS)  # of older commands: evaluation draws nothing
    flags.add_argument("--drop_short", action="store_true", help="leave out histories of fewer than two items")
    flags.add_argument("--results", metavar="FILE", help="append one JSON object per checkpoint")
    add_device_flags(flags)
    return flags.parse_args()


def main() -> None:
    """Load, evaluate each checkpoint, rank."""
    args = parse()
    if args.results:
        check_writable(args.results)
    checkpoints = find_checkpoints(args.ckpt_path)
    data = load_eval(args.data_path, args.drop_short)
    device = pick_device(args)

    losses: dict[Path, EvalLoss] = {}
    about: dict[Path, dict[str, Any]] = {}  # of each checkpoint, for --results
    for path in checkpoints:
        model, metadata = load_model(path, device, args.tf_layer)
        if model.config.predicts == ITEMS:
            print(f"{path} is left out: it predicts the items of one catalog, and has no loss on others")
            continue
        known = metadata.get("encoder"), metadata.get("tokenizer")
        check_fit(Origin(path, model.config.embedding_width, *known, model.config.codebook), data.origin)
        windowed = data._replace(sequences=data.sequences.last(model.config.window))
        losses[path] = evaluate(model, windowed, args.test_batch_size, path.name)
        if args.results:  # all weights are hashed for it
            about[path] = about_model(model.config.noted(), metadata)
            hashes = {"weights": model.fingerprint(), "tokenizer": data.tokenizer or metadata.get("tokenizer")}
            about[path]["fingerprints"] = hashes | about_files(Path(args.data_path), HELD_OUT)

    if not losses:
        raise InputError(
            "no checkpoint predicts codes. Those of --predict items are chosen by the run that makes them "
            "(pre_train.py --eval_every)."
        )

    by = "published" if args.protocol == "released" else "loss"
    ranked = rank({path: getattr(loss, by) for path, loss in losses.items()})
    if args.results:
        shared = {"users": len(data.sequences), "items": len(data.catalog)} | about_program("eval.py", args, device)
        found = {path: {"loss": losses[path].loss, "published": losses[path].published} for path in ranked}
        rows = ({"ckpt_path": str(path), **found[path], **shared, **about[path]} for path in ranked)
        append_results(args.results, rows)
    targets = ", of each only the last item is a target" if data.last_only else ""
    print(f"\n{len(data.sequences)} histories of {args.data_path}{targets}; loss in nats, best first")
    shown = {path: [value if math.isfinite(value) else "not a number" for value in losses[path][:2]] for path in ranked}
    rows = ([str(number), *shown[path], str(path)] for number, path in enumerate(ranked, start=1))
    print_table(["rank", "loss", "mean of batch means (published)", "checkpoint"], rows)
    if not math.isfinite(getattr(losses[ranked[0]], by)):
        raise InputError("no checkpoint has a finite loss: training has diverged. Lower its --lr and train again.")
    print(f"best: {ranked[0]}")


def rank(losses: dict[Path, float]) -> list[Path]:
    """Checkpoints by ascending loss; those without a finite loss come last, in the order given."""
    return sorted(losses, key=lambda path: losses[path] if math.isfinite(losses[path]) else math.inf)


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    data: Interactions,
    batch_size: int,
    name: str | None,
    process: int = 0,
    processes: int = 1,
    sum_over_processes: Callable[..., Sequence[float]] = lambda *numbers: numbers,
) -> EvalLoss:
    """Next-item loss over all histories, in file order.

    Args:
        model: in evaluation mode.
        data: histories that fit the model's window, with their catalog; they say whether only last items are targets.
        batch_size: histories per batch.
        name: shown with the progress; None shows nothing.
        process: number of this process, which takes every `processes`-th batch.
        processes: how many processes evaluate together.
        sum_over_processes: adds up each of its arguments over all processes.
    """
    device = next(model.parameters()).device
    sequences = data.sequences
    total, targets, means, batches = 0.0, 0, 0.0, 0
    rounds = range(0, len(sequences), batch_size * processes)
    for start in tqdm(rounds, desc=name, unit="batch", mininterval=1.0, disable=name is None):
        rows = np.arange(start, len(sequences))[process * batch_size :][:batch_size]
        selected = sequences.select(rows if len(rows) else np.array([0]))
        batch = training_batch(selected, data.catalog, data.last_only)
        # A process that has no batch left in the last round runs along: the weights may be spread over all processes.
        output = model((batch if len(rows) else batch.without_targets()).to(device))
        if len(rows):
            total, targets = total + output.total.item(), targets + output.targets.item()
            means, batches = means + output.mean.item(), batches + 1
    total, targets, means, batches = sum_over_processes(total, targets, means, batches)
    return EvalLoss(total / targets, means / batches)


@torch.no_grad()
def evaluate_ranking(
    model: RecGPT,
    data: Interactions,
    catalog: Trie,
    batch_size: int,
    process: int = 0,
    processes: int = 1,
    sum_over_processes: Callable[..., Sequence[float]] = lambda *numbers: numbers,
    exclude_history: bool = False,
) -> EvalLoss:
    """Loss and NDCG@10 of the last item of every history, ranked among all items of a catalog.

    The loss of fine-tuning rises again while the ranking still improves: it punishes the certainty of wrong guesses,
    not their order. The arguments are those of `evaluate`, and the catalog on the model's device; no process waits for
    another but at the end. A model that predicts items ranks `model.items`, and `data` numbers them alike; its loss
    is an item's divided by K. With `exclude_history` the items of a history, as far as it is read, are no candidates;
    no target may be one of them.
    """
    histories, targets = data.sequences.split_targets()
    left_out = distinct_items(histories, np.ones(len(data.catalog), dtype=bool)) if exclude_history else None
    ranks_items, per_item = model.config.predicts == ITEMS, model.config.codes_per_item
    search = model.item_search(model.items, TOP) if ranks_items else None
    total, gains, means, batches = 0.0, 0.0, 0.0, 0
    for start in range(process * batch_size, len(targets), processes * batch_size):
        rows = np.arange(start, min(start + batch_size, len(targets)))
        batch = make_batch(histories.select(rows), data.catalog).to(catalog.items.device)
        said, without = model.next_item(batch), None if left_out is None else left_out.select(rows)
        if not torch.isfinite(said).all():
            total, batches = math.nan, batches + 1  # of which the caller tells, when no process waits for another
            continue
        if search:
            scores, wanted = search.scores(said), torch.from_numpy(targets[rows].astype(np.int64)).to(said.device)
            loss = F.cross_entropy(scores, wanted, reduction="sum").item()
            if without is not None:
                search.leave_out(scores, without)
            ranks = score_ranks(scores, wanted)  # every item has its number as its place
        else:
            wanted = data.catalog.codes_of(targets[rows]).to(said.device)
            loss = F.cross_entropy(said.flatten(0, 1), wanted.flatten(), reduction="sum").item()
            _, ranks = search_and_rank(said, catalog, TOP, wanted, data.catalog.codes, without)
        gains += user_metrics(ranks, [TOP])[:, 1].sum().item()
        total, means, batches = total + loss, means + loss / len(rows) / per_item, batches + 1
    total, gains, means, batches = sum_over_processes(total, gains, means, batches)
    return EvalLoss(total / len(targets) / per_item, means / batches, gains / len(targets))


if __name__ == "__main__":
    run(main)
