"""Draw a map of a catalog's text embeddings, coloured by code or by a text field, beside the use of the codes.

    python -m utils.plots.embedding_map --dataset steam
    python -m utils.plots.embedding_map --dataset steam --color genres --output figures/embedding_map.png
    python -m utils.plots.embedding_map --dataset steam --method tsne --items 3000 --position 2

Embeddings are those of the file, scaled to unit length, and not whitened, as some tokenizers read them: then no two
directions would say more than others. Items without text (zero embedding) are left out. --color FIELD splits a text at
commas and leaves out parts that more than half of the items have; an item has the colour of the most frequent of its
others. t-SNE keeps neighbours together, but its distances and axes mean nothing.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ae_trainer import DEFAULT_TOKENIZER
from utils.cli import parser, positive_int, run, seed
from utils.datasets import MAKE_TEST, dataset_folder
from utils.errors import InputError, shown
from utils.figures import figure_for, marks, plain, save_figure
from utils.files import load_matrix
from utils.pickles import load_pickle
from utils.plots.catalogs import items_with_text, load_catalog
from utils.util import add_device_flags, pick_device, print_table
from utils.whitening import unit_rows

CODE = "code"
BINS = 120  # bars of codes, at most
SHOWN = 7  # most frequent values of a field that get a colour
OTHER = "other or none"
NEIGHBOURS = 30  # of an item, about, that t-SNE keeps near it (its perplexity)


class Map(NamedTuple):
    """Places of n items in the plane."""

    places: np.ndarray  # (n, 2) float
    axes: tuple[str, str]  # what they mean


def main() -> None:
    """Load, draw a sample, map, print, draw."""
    args = parse()
    figure, axes = figure_for(args.output, columns=2, figsize=(12, 6.4), width_ratios=(2.4, 1))
    folder = dataset_folder(args.dataset)
    catalog, _ = load_catalog(folder, args.vae_ckpt, pick_device(args))
    positions = catalog.codes.shape[1]
    if args.position > positions:
        raise InputError(f"--position {args.position}: an item has {positions} codes. Name one of 1 to {positions}.")
    items = sample(items_with_text(catalog), args.items, args.seed)
    named = None if args.color == CODE else field_values(folder / "item_text_dict.pkl", args.color, items)
    rows = unit_rows(load_matrix(catalog.source, MAKE_TEST)[items], source=catalog.source)
    found = principal_map(rows) if args.method == "pca" else tsne_map(rows, args.seed)
    codes = catalog.codes[items, args.position - 1].astype(np.int64)
    title = f"{args.dataset}: {len(items):,} items, {Path(args.vae_ckpt).stem}"
    print(f"{title}; {' and '.join(found.axes)}")
    _, counts = np.unique(codes, return_counts=True)
    print(f"position {args.position}: {len(counts):,} codes in use, the most frequent has {counts.max():,} items")
    colours = code_colours(codes)
    if named is None:
        axes[0].scatter(*found.places.T, s=8, c=colours(codes), alpha=0.8, linewidths=0)
        colouring = f"coloured by code {args.position}"
    else:
        print_table([args.color, "items"], Counter(named).most_common())
        draw_values(axes[0], found.places, named)
        figure.legend(loc="outside lower center", ncols=4, fontsize=9, markerscale=1.5)
        colouring = f"by {args.color}"
    axes[0].set(xlabel=found.axes[0], ylabel=found.axes[1], title=plain(f"{args.method.upper()}, {colouring}"))
    draw_codes(axes[1], codes, colours if named is None else None, args.position)
    figure.suptitle(plain(title))
    save_figure(figure, args.output)


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("--dataset", default="yelp", help="data/test/NAME, or a data set directory")
    flags.add_argument("--vae_ckpt", default=DEFAULT_TOKENIZER, help="tokenizer weights")
    flags.add_argument("--color", default=CODE, metavar="FIELD", help='"code", or a field of item_text_dict.pkl')
    flags.add_argument("--position", type=positive_int, default=1, help="of the code that is coloured and counted")
    flags.add_argument("--method", choices=("pca", "tsne"), default="pca", help="how the map is made")
    flags.add_argument("--items", type=positive_int, default=5000, help="items on the map, at most: drawn at random")
    flags.add_argument("--seed", type=seed, default=0, help="of this draw, and of t-SNE")
    flags.add_argument("--output", default="figures/embedding_map.png", metavar="FILE.png", help="the figure")
    add_device_flags(flags)
    return flags.parse_args()


def sample(items: np.ndarray, most: int, number: int) -> np.ndarray:
    """At most so many of some items (n,), ascending, drawn with a seed."""
    if len(items) <= most:
        return items
    return np.sort(np.random.default_rng(number).choice(items, most, replace=False))


def principal_map(rows: np.ndarray) -> Map:
    """Embeddings (n, E) along their two principal directions, with the part of the variance that each has."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred)  # ascending
    total = max(variances.sum(), np.finfo(float).tiny)
    axes = (f"principal component {number} ({variances[-number] / total:.1%} of the variance)" for number in (1, 2))
    return Map(centred @ directions[:, [-1, -2]], tuple(axes))


def tsne_map(rows: np.ndarray, number: int) -> Map:
    """Embeddings (n, E) by t-SNE from a seed; InputError for too few, or where scikit-learn is not installed."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise InputError("--method tsne needs scikit-learn: pip install scikit-learn, or use --method pca.") from error
    if len(rows) <= NEIGHBOURS:
        raise InputError(f"--method tsne needs more than {NEIGHBOURS} items, found {len(rows)}. Use --method pca.")
    places = TSNE(perplexity=NEIGHBOURS, init="pca", random_state=number).fit_transform(rows)
    return Map(places, ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)"))


def field_values(path: Path, field: str, items: np.ndarray) -> list[str]:
    """The value of a text field for each of some items (n,): one of the most frequent, or OTHER.

    InputError if item_text_dict.pkl is missing or damaged, or none of the items has the field.
    """
    texts = load_pickle(path, dict, MAKE_TEST)
    listed, fields = [], Counter()
    for item in items.tolist():
        text = texts.get(item) or {}
        if not isinstance(text, dict):
            raise InputError(f"{path}, item {item}: found {shown(text)}, expected a dict of text fields. {MAKE_TEST}")
        fields.update(text.keys())
        listed.append(parts(text.get(field)))
    if not any(listed):
        known = ", ".join(str(name) for name, _ in fields.most_common(10))
        raise InputError(f"--color {field}: no item of {path} has this field. There are: {known}, and code.")
    counts = Counter(part for found in listed for part in found)
    top = [part for part, count in counts.most_common() if count <= len(items) / 2][:SHOWN]
    return [next((part for part in top if part in found), OTHER) for found in listed]


def parts(value: Any) -> set[str]:
    """What a field lists: the entries of a list, or the parts of a text between commas.

    >>> sorted(parts("Action, Indie"))
    ['Action', 'Indie']
    """
    texts = value if isinstance(value, (list, tuple)) else [] if value is None else str(value).split(",")
    return {str(text).strip()[:40] for text in texts} - {""}


def code_colours(codes: np.ndarray) -> Any:
    """A function from codes (n,) to colours, dark for low numbers and light for high ones."""
    from matplotlib import colormaps

    highest = max(1, codes.max())
    return lambda numbers: colormaps["viridis"](0.92 * numbers / highest)


def draw_values(axis: Any, places: np.ndarray, named: list[str]) -> None:
    """Items in the colour and with the marker of their value, the others in light grey below them."""
    named, ordered = np.array(named), [name for name, _ in Counter(named).most_common() if name != OTHER]
    others = places[named == OTHER]
    if len(others):
        axis.scatter(*others.T, s=6, c="0.75", linewidths=0, label=f"{OTHER} ({len(others):,})")
    for name, option in zip(ordered, marks(len(ordered)), strict=True):
        here = places[named == name]
        label = plain(f"{name} ({len(here):,})")
        axis.scatter(*here.T, s=14, color=option["color"], marker=option["marker"], linewidths=0, label=label)


def draw_codes(axis: Any, codes: np.ndarray, colours: Any, position: int) -> None:
    """How many items have each of the codes (n,), or each of some neighbouring ones, upwards by number."""
    per_bar = codes.max() // BINS + 1
    counts = np.bincount(codes // per_bar)
    starts = np.arange(len(counts)) * per_bar
    axis.barh(starts, counts, height=per_bar, align="edge", color=colours(starts) if colours else "0.35")
    upwards = f"number of code {position}" + (f" ({per_bar} codes a bar)" if per_bar > 1 else "")
    axis.set(xlabel="items on the map", ylabel=upwards, title=f"use of code {position}")


if __name__ == "__main__":
    run(main)
