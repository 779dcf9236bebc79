"""Draw throughput against catalog size and history length from the JSON lines of the other benchmarks.

    python benchmarks/plot.py --results results.jsonl --output docs/performance.png

Draws what the file holds: `search` results by --items, `predict` and `train` results by --length.
"""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

from utils.cli import parser, positive_float, run
from utils.errors import InputError
from utils.figures import figure_for
from utils.files import read_jsonl


def main() -> None:
    """Read, draw, save."""
    flags = parser(__doc__)
    flags.add_argument("--results", required=True, metavar="FILE.jsonl", help="what the benchmarks appended")
    flags.add_argument("--output", default="docs/performance.png", metavar="FILE.png", help="the plot")
    flags.add_argument("--entropy", type=positive_float, default=2.0, help="draw the searches at this entropy, in nats")
    args = flags.parse_args()
    figure, (by_items, by_length) = figure_for(args.output, columns=2, figsize=(11, 4.2))
    results = [result for _, result in read_jsonl(args.results, "Run the benchmarks with --results.")]
    if not results:
        raise InputError(f"{args.results} is empty. Run the benchmarks with --results {args.results}.")
    searches = [r for r in results if r.get("benchmark") == "search" and r.get("entropy") == args.entropy]
    for way in ("exact", "scan", "beam", "published"):
        line(by_items, searches, "items", f"{way}_ms_per_user", way)
    finish(by_items, f"items in the catalog (codes of {args.entropy:g} nats)", "search: ms per user")

    for name, key in (("predict", "users_per_s"), ("train", "histories_per_s")):
        runs = [result for result in results if result.get("benchmark") == name and result.get("length")]
        unit = key.replace("_per_s", "/s")
        line(by_length, runs, "length", key, f"{name}: {unit}")
        line(by_length, runs, "length", f"published_{key}", f"{name}, published formulation: {unit}")
    finish(by_length, "items in a history", "throughput")
    if not by_items.lines and not by_length.lines:
        raise InputError(f"{args.results} has no search at --entropy {args.entropy:g} and no run with --length.")
    figure.savefig(args.output, dpi=130)
    print(f"wrote {args.output}: {len(results)} results")


def line(axes: Any, results: list[dict[str, Any]], x: str, y: str, label: str) -> None:
    """Draw a line through the results that have both values, the last one of each x."""
    points = {result[x]: result[y] for result in results if result.get(x) and result.get(y)}
    if points:
        xs = sorted(points)
        axes.plot(xs, [points[value] for value in xs], marker="o", label=label)


def finish(axes: Any, x: str, y: str) -> None:
    """Set logarithmic axes, their names, and the legend."""
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=7)


if __name__ == "__main__":
    run(main)
