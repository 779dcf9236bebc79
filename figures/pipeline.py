"""Draw the pipeline that README.md shows: item text, embedding, four codes, GPT-2, search.

    python figures/pipeline.py --output figures/pipeline.png

The item, its numbers and its codes are made up; the mask is that of three items.
"""

import argparse

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

INK, SOFT = "#1f2933", "#d5dce3"
CODES = ("#3b6fb6", "#3d9a74", "#d98e2b", "#b8507f")  # one colour for each of the K = 4 codes of an item
STEPS = (
    ("item text", "any words that\ndescribe the item"),
    ("embedding", "sentence encoder,\n768 numbers, cut in four"),
    ("4 codes", "FSQ tokenizer, one\nof 15,360 for each slice"),
    ("GPT-2", "a history of codes; a token sees\nits own item and earlier ones"),
    ("search", "sum of four log-probabilities,\nexact over the whole catalog"),
)
CENTRES = (1.0, 3.35, 5.6, 8.05, 10.85)


def main() -> None:
    """Draw each step from left to right, and save."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output", default="figures/pipeline.png", metavar="FILE.png", help="the picture")
    args = flags.parse_args()
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(12.4, 3.1), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.2, 12.2), ylim=(0.12, 3.22))
    axes.axis("off")
    for centre, (title, caption) in zip(CENTRES, STEPS, strict=True):
        axes.text(centre, 2.98, title, ha="center", va="center", size=15, weight="bold", color=INK)
        axes.text(centre, 0.45, caption, ha="center", va="center", size=10, color="#52606d", linespacing=1.35)
    for start, end in ((2.0, 2.4), (4.35, 4.75), (6.45, 6.85), (9.2, 9.6)):
        arrow = {"arrowstyle": "-|>,head_length=0.6,head_width=0.3", "color": INK, "lw": 2}
        axes.annotate("", (end, 1.72), (start, 1.72), arrowprops=arrow)
    draw_text(axes, CENTRES[0])
    draw_embedding(axes, CENTRES[1])
    draw_codes(axes, CENTRES[2])
    draw_attention(axes, CENTRES[3])
    draw_search(axes, CENTRES[4])
    figure.savefig(args.output, dpi=130)


def draw_text(axes: Axes, x: float) -> None:
    """A card with the fields of an item."""
    axes.add_patch(FancyBboxPatch((x - 0.85, 1.15), 1.7, 1.15, boxstyle="round,pad=0.06", fc="#f5f7fa", ec=INK, lw=1.3))
    axes.text(x, 1.72, "title: Blue pen\nbrand: Bic\nuse: writing", ha="center", va="center", size=11, color=INK)


def draw_embedding(axes: Axes, x: float) -> None:
    """Four slices of made-up numbers, one above the other."""
    strengths = np.random.default_rng(3).uniform(0.15, 1.0, (4, 8))
    for row, (colour, slice_strengths) in enumerate(zip(CODES, strengths, strict=True)):
        for column, strength in enumerate(slice_strengths):
            cell = (x - 0.84 + 0.21 * column, 2.15 - 0.36 * row)
            axes.add_patch(Rectangle(cell, 0.18, 0.24, color=colour, alpha=strength, lw=0))


def draw_codes(axes: Axes, x: float) -> None:
    """The four integers that stand for the item."""
    for row, (colour, code) in enumerate(zip(CODES, ("812", "14033", "97", "5210"), strict=True)):
        box = FancyBboxPatch((x - 0.5, 2.16 - 0.36 * row), 1.0, 0.2, boxstyle="round,pad=0.04", color=colour, lw=0)
        axes.add_patch(box)
        axes.text(x, 2.25 - 0.36 * row, code, ha="center", va="center", size=11, weight="bold", color="white")


def draw_attention(axes: Axes, x: float) -> None:
    """The mask of three items: queries downwards, keys to the right, filled where a query sees a key."""
    side = 0.13
    for query in range(12):
        for key in range(12):
            colour = CODES[key % 4] if key // 4 <= query // 4 else SOFT
            cell = (x - 6 * side + side * key, 2.38 - side * query)
            axes.add_patch(Rectangle(cell, side * 0.86, side * 0.86, color=colour, lw=0))


def draw_search(axes: Axes, x: float) -> None:
    """Four distributions over codes, and the list that they give."""
    for row, colour in enumerate(CODES):
        heights = np.random.default_rng(row).dirichlet(np.full(9, 0.6)) * 0.27
        bottom = 2.12 - 0.36 * row
        axes.bar(x - 1.1 + 0.1 * np.arange(9), heights + 0.02, 0.08, bottom, color=colour)
        axes.plot((x - 1.16, x - 0.24), (bottom, bottom), color=INK, lw=0.8)
    axes.text(x - 0.1, 1.72, "Σ", ha="left", va="center", size=20, color=INK)
    for place, item in enumerate(("red pen", "ink", "notebook")):
        axes.text(x + 0.3, 2.1 - 0.38 * place, f"{place + 1}  {item}", ha="left", va="center", size=11, color=INK)


if __name__ == "__main__":
    main()
