"""Draw held-out loss and accuracy of checkpoints at each of an item's K codes, beside guessing by frequency.

    python -m utils.plots.code_positions --ckpt_path ckpt/layer_3_epoch_4.pt
    python -m utils.plots.code_positions --ckpt_path ckpt --data_path data/eval --output figures/code_positions.png
    python -m utils.plots.code_positions --ckpt_path ckpt/layer_3_epoch_4.pt --dataset steam

Targets are those of eval.py, or with --dataset the last item of each history of test.pkl. Accuracy is the share of
targets whose code at the position is the most likely of all. The guess knows how often each code occurs among the very
targets, so that no constant guess has a lower loss, and none a higher accuracy.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ae_trainer import DEFAULT_TOKENIZER
from model import LOGITS_AT_ONCE, RecGPT, load_model
from utils.checkpoint import ITEMS, find_checkpoints
from utils.cli import parser, positive_int, run
from utils.data import training_batch
from utils.datasets import Interactions, Origin, check_fit, dataset_folder, load_eval, load_test, noted_encoder
from utils.errors import InputError
from utils.figures import figure_for, marks, plain, save_figure
from utils.packed import entropy
from utils.plots.catalogs import load_catalog
from utils.util import add_device_flags, pick_device, print_table

GUESS = "guessing by frequency (of these targets)"


class ByPosition(NamedTuple):
    """What is measured at each of the K positions."""

    loss: np.ndarray  # (K,) float64 nats, mean over targets
    accuracy: np.ndarray  # (K,) float64, share of targets


def main() -> None:
    """Load, measure each checkpoint, print, draw."""
    args = parse()
    figure, axes = figure_for(args.output, columns=2, figsize=(10, 4.2))
    checkpoints = find_checkpoints(args.ckpt_path)
    device = pick_device(args)
    data, name = load_data(args, device)
    measured: dict[str, ByPosition] = {}
    window = 0
    for path, label in zip(checkpoints, short_names(checkpoints), strict=True):
        model, metadata = load_model(path, device)
        if model.config.predicts == ITEMS:
            print(f"{path} is left out: it predicts the items of one catalog, and has no loss of codes")
            continue
        known = metadata.get("encoder"), metadata.get("tokenizer")
        check_fit(Origin(path, model.config.embedding_width, *known, model.config.codebook), data.origin)
        found = measure(model, data, args.test_batch_size, label)
        if not np.isfinite(found.loss).all():
            raise InputError(f"{path} has no finite loss: its training has diverged. Leave it out.")
        measured[label], window = found, max(window, model.config.window)
    if not measured:
        raise InputError("no checkpoint predicts codes. Name one that pre_train.py wrote without --predict items.")
    codes = target_codes(data._replace(sequences=data.sequences.last(window)))
    measured[GUESS] = guess(codes)
    title = f"{name}: {len(codes):,} targets"
    show(title, measured)
    draw(axes, measured)
    figure.suptitle(plain(title if len(measured) > 2 else f"{title}, {next(iter(measured))}"))
    save_figure(figure, args.output)


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    paths = "checkpoints, folders or quoted patterns"
    flags.add_argument("--ckpt_path", nargs="+", default=["./ckpt"], metavar="PATH", help=paths)
    flags.add_argument("--data_path", default="./data/eval", help="folder with eval.pkl and its companions")
    flags.add_argument("--dataset", help="data/test/NAME, or a data set directory, in place of --data_path")
    flags.add_argument("--vae_ckpt", default=DEFAULT_TOKENIZER, help="tokenizer weights, for --dataset")
    flags.add_argument("--test_batch_size", type=positive_int, default=32, help="histories per batch")
    flags.add_argument("--drop_short", action="store_true", help="leave out histories of fewer than two items")
    flags.add_argument("--output", default="figures/code_positions.png", metavar="FILE.png", help="the figure")
    add_device_flags(flags)
    return flags.parse_args()


def load_data(args: argparse.Namespace, device: torch.device) -> tuple[Interactions, str]:
    """The histories with their catalog, and what the data are called; InputError for damaged files."""
    if not args.dataset:
        return load_eval(args.data_path, args.drop_short), args.data_path
    test = load_test(dataset_folder(args.dataset), False, args.drop_short)
    catalog, tokenizer = load_catalog(test.embeddings_path.parent, args.vae_ckpt, device)
    encoder = tokenizer.prepared_encoder(noted_encoder(test.embeddings_path))
    return Interactions(test.sequences, catalog, tokenizer.fingerprint(), encoder, last_only=True), args.dataset


def short_names(paths: list[Path]) -> list[str]:
    """File names of checkpoints, or their whole paths where two have the same name."""
    names = [path.stem for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


@torch.no_grad()
def measure(model: RecGPT, data: Interactions, batch_size: int, name: str | None = None) -> ByPosition:
    """Loss and accuracy of a model in evaluation mode at each position; None as `name` shows no progress."""
    device = next(model.parameters()).device
    sequences = data.sequences.last(model.config.window)
    positions = data.catalog.codes.shape[1]
    loss, hits, targets = np.zeros(positions), np.zeros(positions), 0
    rounds = range(0, len(sequences), batch_size)
    for start in tqdm(rounds, desc=name, unit="batch", mininterval=1.0, disable=name is None):
        rows = np.arange(start, min(start + batch_size, len(sequences)))
        batch = training_batch(sequences.select(rows), data.catalog, data.last_only).to(device)
        hidden = model.hidden(batch, last=batch.last if batch.last_only else None).flatten(0, -2)
        for states, wanted in zip(
            hidden.split(LOGITS_AT_ONCE), batch.targets.flatten().split(LOGITS_AT_ONCE), strict=True
        ):
            logits = model.logits(states)
            at = np.arange(targets, targets + len(wanted)) % positions  # an item's codes stand in a row
            np.add.at(loss, at, F.cross_entropy(logits, wanted, reduction="none").cpu().numpy())
            np.add.at(hits, at, (logits.argmax(-1) == wanted).cpu().numpy())
            targets += len(wanted)
    items = targets / positions
    return ByPosition(loss / items, hits / items)


def target_codes(data: Interactions) -> np.ndarray:
    """Codes of all targets, (n, K): of every item but a history's first, or of the last ones."""
    kept = np.ones(len(data.sequences.items), dtype=bool)
    kept[data.sequences.offsets[:-1]] = False
    items = data.sequences.split_targets()[1] if data.last_only else data.sequences.items[kept]
    return data.catalog.codes[items]


def guess(codes: np.ndarray) -> ByPosition:
    """Loss and accuracy of guessing codes (n, K) by their own frequencies.

    >>> guess(np.array([[3, 0], [3, 1]])).loss.round(4).tolist()
    [0.0, 0.6931]
    """
    counts = [np.bincount(column) for column in codes.T]
    loss = np.array([*map(entropy, counts)]) + 0.0  # without a negative zero
    return ByPosition(loss, np.array([count.max() / len(codes) for count in counts]))


def show(title: str, measured: dict[str, ByPosition]) -> None:
    """Print a table of loss and one of accuracy, with the mean over positions."""
    positions = range(1, len(measured[GUESS].loss) + 1)
    for what, meaning in (("loss", "loss in nats"), ("accuracy", "accuracy, the most likely code")):
        print(f"\n{title}; {meaning}, by position of the code")
        values = {name: getattr(found, what) for name, found in measured.items()}
        rows = [[name, *map(float, row), float(row.mean())] for name, row in values.items()]
        print_table(["", *map(str, positions), "mean"], rows)
    print()


def draw(axes: np.ndarray, measured: dict[str, ByPosition]) -> None:
    """A line for each checkpoint on both axes, and a dotted black one for the guess."""
    positions = np.arange(1, len(measured[GUESS].loss) + 1)
    options = [*marks(len(measured) - 1), {"color": "black", "marker": "_", "linestyle": ":"}]
    for (name, found), option in zip(measured.items(), options, strict=True):
        axes[0].plot(positions, found.loss, label=plain(name), **option)
        axes[1].plot(positions, 100 * found.accuracy, label=plain(name), **option)
    axes[0].set(ylabel="loss (nats per code)", title="loss, lower is better")
    axes[1].set(ylabel="targets whose code is the most likely (%)", title="accuracy, higher is better", ylim=(0, None))
    for axis in axes:
        axis.set(xlabel="position of the code in its item", xticks=positions)
        axis.grid(alpha=0.3)
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


if __name__ == "__main__":
    run(main)
