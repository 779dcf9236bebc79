"""Draw how a catalog uses the codes of a tokenizer: how often each occurs at each position, and in all.

    python -m utils.plots.codebook --codes data/pre_train/token_id_list.pkl
    python -m utils.plots.codebook --codes data/pre_train --output figures/codebook.png
    python -m utils.plots.codebook --dataset steam --vae_ckpt vae_ckpt/vae_len4_fsq88865_ep90.pt

--codes takes a token list (.pkl), or a folder with the packed form. Every item counts once, however often it occurs in
histories. With --dataset, items without text (zero embedding) are left out; a token list does not say which these are.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ae_trainer import DEFAULT_TOKENIZER
from utils.cli import parser, run
from utils.datasets import codes_array, dataset_folder, noted_codebook
from utils.figures import figure_for, marks, plain, save_figure
from utils.files import check_whole
from utils.fsq import sharing
from utils.packed import HEADER, entropy, open_packed
from utils.pickles import load_pickle
from utils.plots.catalogs import items_with_text, load_catalog
from utils.util import add_device_flags, pick_device, print_table

ALL = "all"
BINS = 120  # of a histogram


class Usage(NamedTuple):
    """How codes are used."""

    used: int  # how many different ones
    perplexity: float  # how many codes, used equally, would have the same entropy
    most: float  # the share of the most frequent one

    @classmethod
    def of(cls, counts: np.ndarray) -> "Usage":
        """By how often each code occurs, (V,) int64.

        >>> Usage.of(np.array([2, 0, 2]))
        Usage(used=2, perplexity=2.0, most=0.5)
        """
        return cls(
            int((counts > 0).sum()), round(float(np.exp(entropy(counts))), 4), float(counts.max() / counts.sum())
        )


def main() -> None:
    """Read the codes, count, print, draw."""
    args = parse()
    figure, axes = figure_for(args.output, columns=2)
    codes, name = load_codes(args)
    counts = count(codes)
    title = f"{name}: {len(codes):,} items, {sharing(codes) / len(codes):.1%} share all their codes with another"
    print(title)
    header = ["position", "codes in use", "perplexity", "share of the most frequent"]
    print_table(header, ([position, *Usage.of(found)] for position, found in counts.items()))
    figure.set_size_inches(11, 1.2 * len(counts) + 1)
    draw_histograms(axes[0], counts)
    draw_sorted(axes[1], counts)
    figure.suptitle(plain(title), fontsize=11)
    save_figure(figure, args.output)


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    source = flags.add_mutually_exclusive_group(required=True)
    source.add_argument("--codes", metavar="PATH", help="token list (.pkl), or a folder with the packed form")
    source.add_argument("--dataset", help="data/test/NAME, or a data set directory, whose texts get codes")
    flags.add_argument("--vae_ckpt", default=DEFAULT_TOKENIZER, help="tokenizer weights, for --dataset")
    flags.add_argument("--output", default="figures/codebook.png", metavar="FILE.png", help="the figure")
    add_device_flags(flags)
    return flags.parse_args()


def load_codes(args: argparse.Namespace) -> tuple[np.ndarray, str]:
    """The codes of items (n, K) int16, and what they are called; InputError for a damaged file."""
    if args.dataset:
        return tokenized(args)
    path = Path(args.codes)
    if path.is_dir():
        folder = path.parent if (path / HEADER).is_file() else path
        return open_packed(folder)[0].catalog.codes, str(folder)
    check_whole(path.with_suffix(".json"))
    listed = load_pickle(path, (list, dict), "Make it with data_processing/make_token_list.py.")
    listed = [*listed.values()] if isinstance(listed, dict) else listed
    return codes_array(listed, path, noted_codebook(path)), str(path)


def tokenized(args: argparse.Namespace) -> tuple[np.ndarray, str]:
    """The codes of the items of a data set that have text, and what they are called."""
    catalog, _ = load_catalog(dataset_folder(args.dataset), args.vae_ckpt, pick_device(args))
    return catalog.codes[items_with_text(catalog)], f"{args.dataset}, {Path(args.vae_ckpt).stem}"


def count(codes: np.ndarray) -> dict[str, np.ndarray]:
    """How often each code occurs among (n, K), at each position and in all: (V,) int64 each, up to the highest code."""
    length = int(codes.max()) + 1
    columns = {str(position): column for position, column in enumerate(codes.T, start=1)}
    return {name: np.bincount(column, minlength=length) for name, column in {**columns, ALL: codes.ravel()}.items()}


def draw_histograms(axis: Any, counts: dict[str, np.ndarray]) -> None:
    """In the place of an axis, one histogram a row, over the numbers of the codes."""
    figure, rows = axis.figure, axis.get_subplotspec().subgridspec(len(counts), 1)
    axis.remove()
    length = len(counts[ALL])
    edges = np.linspace(0, length, min(BINS, length) + 1)
    first = None
    for row, (name, found) in enumerate(counts.items()):
        first = below = figure.add_subplot(rows[row], sharex=first)
        below.hist(np.arange(length), edges, weights=found, color="0.35")
        below.set_ylabel("all positions" if name == ALL else f"position {name}", fontsize=8)
        below.tick_params(labelsize=8, labelbottom=name == ALL)
        if not row:
            below.set_title(f"occurrences, {length / (len(edges) - 1):.0f} codes a bar", fontsize=10)
    below.set_xlabel("number of the code")


def draw_sorted(axis: Any, counts: dict[str, np.ndarray]) -> None:
    """The codes by how often they occur, the most frequent first, a line for each position."""
    for (name, found), option in zip(counts.items(), marks(len(counts)), strict=True):
        usage, ordered = Usage.of(found), np.sort(found[found > 0])[::-1]
        label = f"{f'position {name}' if name != ALL else 'all positions'}: {usage.used:,} codes in use, "
        every = np.unique(np.geomspace(1, len(ordered), 9).astype(int)) - 1
        axis.plot(
            np.arange(1, len(ordered) + 1),
            ordered,
            label=f"{label}perplexity {usage.perplexity:,.0f}",
            markevery=every.tolist(),
            **option,
        )
    axis.set(xscale="log", yscale="log", xlabel="codes, the most frequent first (rank)", ylabel="occurrences")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter("{x:,.0f}")
        scale.set_minor_formatter("")
    axis.set_title("usage, sorted: a flat line would be equal use", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower left")


if __name__ == "__main__":
    run(main)
