"""How the loss falls with parameters and tokens: a grid of training runs, and the law fitted to it.

    python -m benchmarks.scaling data/pre_train --work data/scaling
    python -m benchmarks.scaling data/pre_train --work data/scaling --widths 64 128 --shares 0.1 1 --minutes 60
    python -m benchmarks.scaling --work data/scaling --fit_only

Of the users of data/pre_train, --held_out are drawn and put aside, in no share; the others are trained on, by
pre_train.py --data_share, and eval.py finds the loss of every item of the held-out users but their first, in nats per
target token. With --eval_path that folder is evaluated instead, and all users are trained on.

Every finished run is a line of --results and not repeated: a killed grid goes on, from a run's last checkpoint, with
the same command. --minutes M starts no run after so many minutes. Then the law

    loss = E + A / N^alpha + B / D^beta

is fitted (benchmarks/scaling_law.py): N parameters without the tables of embeddings and head, and again with them; D
target tokens seen, of all epochs. --output is the plot, and the same name with .md has rows of Markdown.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.real_data import Step, pre_train
from benchmarks.scaling_law import Found, Law, Runs, fit, predict_largest
from data_processing.make_pre_train import link
from utils.checkpoint import load_state
from utils.cli import parser, positive_float, positive_int, run, seed, share
from utils.data import WINDOW
from utils.datasets import (
    CODES,
    EMBEDDINGS,
    HELD_OUT,
    HISTORIES,
    MAKE_EVAL,
    MAKE_PRE_TRAIN,
    SEEN,
    WHOLE,
    is_time,
    load_pre_train,
)
from utils.errors import InputError
from utils.errors import shown as quoted
from utils.figures import figure_for, save_figure
from utils.files import MANIFEST, atomic_write, check_writable, content, read_json, read_jsonl, require_file, staged_set
from utils.packed import is_current, open_packed, pack
from utils.pickles import save_pickle
from utils.training.plan import Plan
from utils.training.settings import Settings
from utils.util import append_results, print_table

TABLES = ("gpt2model.wte.weight", "gpt2model.wpe.weight", "pred_head.weight")  # of codes, of places, of the head
SETTINGS = "--batch_size 40 --lr 1e-3 --schedule cosine --warmup 0.05 --max_grad_norm 1 --dropout 0"
COMMON = ("settings", "layers", "epochs", "trained_on", "held_out")  # in which all runs of a fit agree
NUMBERS = ("width", "share", "seed", "parameters", "all_parameters", "tokens", "loss")
ONE_RUN = ("width", "share", "seed")  # of which a grid has one run each
LIMITS = {"share": (1e-9, 1), "loss": (1e-3, 1e3)}  # nats; of other numbers, which are whole, 1 (seeds 0) to MOST
MOST = 2**63 - 1  # the largest seed
COLUMNS = ("width", "share", "seed", "parameters", "with tables", "tokens seen", "loss")
REMEDY = "Run the grid without --fit_only, or name the file of a grid with --results."
COUNTED = {"parameters": "without tables", "all_parameters": "with tables"}


def main() -> None:
    """Split, train and evaluate what is missing, fit, report, draw."""
    flags = parser(__doc__)
    flags.add_argument("data", nargs="?", metavar="DIR", help="training data, in the form of data/pre_train")
    flags.add_argument("--work", type=Path, required=True, metavar="DIR", help="where everything is made, and kept")
    flags.add_argument("--widths", type=positive_int, nargs="+", default=[64, 128, 256], help="hidden widths")
    shares = [0.05, 0.1, 0.25, 0.5, 1.0]
    flags.add_argument("--shares", type=share, nargs="+", default=shares, help="of the users that are not held out")
    flags.add_argument("--seeds", type=seed, nargs="+", default=[0], help="of training")
    flags.add_argument("--tf_layer", type=positive_int, default=3, help="transformer layers")
    flags.add_argument("--epoch", type=positive_int, default=1, help="passes over each share")
    flags.add_argument("--settings", default=SETTINGS, metavar="FLAGS", help="further flags of pre_train.py, in quotes")
    flags.add_argument("--held_out", type=positive_int, default=2000, metavar="USERS", help="users in no share")
    flags.add_argument("--eval_path", metavar="DIR", help="a folder as eval.py reads it, in place of --held_out")
    flags.add_argument("--results", metavar="FILE", help="a line of JSON for each run; by default WORK/results.jsonl")
    flags.add_argument("--output", metavar="FILE.png", help="the plot; by default WORK/scaling.png")
    flags.add_argument("--minutes", type=positive_float, default=math.inf, help="start no run after so many")
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of training and evaluation")
    flags.add_argument("--draws", type=positive_int, default=200, help="of the bootstrap, for the intervals")
    flags.add_argument("--fit_only", action="store_true", help="train nothing: fit the runs that --results has")
    args = flags.parse_args()
    args.work = args.work.resolve()
    args.results = Path(args.results or args.work / "results.jsonl")
    args.output = Path(args.output or args.work / "scaling.png")
    if not args.fit_only:
        if args.data is None:
            raise InputError("no training data were named. Give their folder first, or --fit_only.")
        check_writable(args.results)
        train_grid(args)
    rows = read_rows(args.results)
    if not rows:
        raise InputError(f"{args.results} has no finished run. {REMEDY}")
    report(rows, args)


# Training


def train_grid(args: argparse.Namespace) -> None:
    """Train and evaluate the runs of the grid that --results does not have, small ones first; append a row for each."""
    trained_on, held_out = Path(args.data), Path(args.eval_path or "")
    if args.eval_path is None:
        trained_on, held_out = split(trained_on, args.work, args.held_out)
    judged_by = content(require_file(held_out / HELD_OUT[0], MAKE_EVAL))
    if read_json(trained_on / MANIFEST, missing_ok=True).get(SEEN) == judged_by:
        raise InputError(f"{trained_on} has the targets of {held_out}. Train on the folder above, or give --held_out.")
    if not is_current(trained_on):
        pack(trained_on)
    data, header = open_packed(trained_on)
    plans = {part: Plan(data, Settings(data_share=part), WINDOW) for part in args.shares}
    common = {"settings": args.settings, "layers": args.tf_layer, "epochs": args.epoch}
    common |= {"trained_on": header["content"], "held_out": judged_by}
    earlier = read_rows(args.results) if args.results.exists() else []
    if earlier and (other := [name for name in COMMON if earlier[0][name] != common[name]]):
        raise InputError(
            f"{args.results} has runs with {other[0]} {earlier[0][other[0]]}, and now it is {common[other[0]]}: they "
            "make no common curve. Give another --results and --output, or the same as before."
        )
    grid = {(width, part, number) for part in args.shares for width in args.widths for number in args.seeds}
    missing = grid - {(row["width"], row["share"], row["seed"]) for row in earlier}
    folder = args.work / "runs" / hashlib.blake2b(json.dumps(common).encode(), digest_size=4).hexdigest()
    deadline, made = time.monotonic() + 60 * args.minutes, 0
    for width, part, number in sorted(missing, key=lambda one: (one[0] * one[1], one)):
        place = folder / f"{width}/{part:g}/{number}"
        row = run_one(args, place, (trained_on, held_out), (width, part, number), deadline)
        if row:
            tokens = int(plans[part].target_tokens().sum()) * args.epoch
            append_results(str(args.results), [{**row, "users": plans[part].histories, "tokens": tokens, **common}])
            made += 1
    if made < len(missing):
        print(f"{len(missing) - made} of {len(grid)} runs are missing: the same command goes on with them")


def run_one(
    args: argparse.Namespace, place: Path, read: tuple[Path, Path], one: tuple[int, float, int], deadline: float
) -> dict[str, Any] | None:
    """Train and evaluate a run of width, share and seed on the folders of `read`; None where it has come to no end."""
    (width, part, number), (trained_on, held_out) = one, read
    weights, evaluated = place / f"layer_{args.tf_layer}_last.pt", place / "eval.jsonl"
    sizes = f"--width {width} --tf_layer {args.tf_layer} --epoch {args.epoch} --data_share {part} --save_last"
    fitted = pre_train(trained_on, place, number, args.device, f"{args.settings} {sizes}")
    judged = ["eval.py", "--data_path", str(held_out), "--ckpt_path", str(weights), "--results", str(evaluated)]
    evaluated.unlink(missing_ok=True)  # of a grid that was killed before it wrote the row
    if not Step(evaluated, [fitted, [*judged, "--device", args.device]]).run(deadline):
        return None
    (found,) = (record for _, record in read_jsonl(evaluated, REMEDY))
    counts = {name: value.numel() for name, value in load_state(weights).items()}
    counted = {"parameters": sum(count for name, count in counts.items() if name not in TABLES)}
    counted |= {"all_parameters": sum(counts.values())}
    return {"width": width, "share": part, "seed": number, **counted, "loss": found["loss"]}


def split(data: Path, work: Path, users: int) -> tuple[Path, Path]:
    """Put users aside, always the same: the folder to train on, and one as eval.py reads it, with the same catalog.

    InputError if there are not more users than that.
    """
    trained_on, held_out = work / "train", work / "eval"
    made_of = {"made_of": content(require_file(data / HISTORIES, MAKE_PRE_TRAIN)), "users_held_out": users}
    noted = [read_json(folder / MANIFEST, missing_ok=True) for folder in (trained_on, held_out)]
    if all(made_of.items() <= note.items() for note in noted):
        return trained_on, held_out
    sequences = load_pre_train(data).sequences
    if users >= len(sequences):
        raise InputError(f"--held_out {users}: {data} has {len(sequences)} users, and some are to train on. Give less.")
    rows = np.random.default_rng(0).permutation(len(sequences))
    told = read_json(data / MANIFEST, missing_ok=True)
    notes = {name: told[name] for name in (SEEN, WHOLE) if name in told}
    with staged_set(trained_on, [HISTORIES], **notes, **made_of) as staging:
        save_pickle(staging / HISTORIES, dict(enumerate(sequences.select(np.sort(rows[users:])).lists())))
        link_catalog(data, staging, EMBEDDINGS, CODES)
    aside = sequences.select(np.sort(rows[:users]))
    histories, codes, id_map, embeddings = HELD_OUT
    with staged_set(held_out, [histories, id_map], **made_of) as staging:
        save_pickle(staging / histories, dict(enumerate(aside.lists())))
        save_pickle(staging / id_map, {item: item for item in np.unique(aside.items).tolist()})
        link_catalog(data, staging, embeddings, codes)
    print(f"{work}: {len(sequences) - users} users to train on, {users} held out")
    return trained_on, held_out


def link_catalog(data: Path, folder: Path, embeddings: str, codes: str) -> None:
    """Give embeddings and codes, with the JSON beside them, names in another folder."""
    for name, new in ((EMBEDDINGS, embeddings), (CODES, codes)):
        for file in data.glob(f"{Path(name).stem}.*"):
            link(file, folder / f"{Path(new).stem}{file.suffix}")


# Rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of finished runs.

    InputError for one without its numbers, of other settings than the first, or of a run that another row has.
    """
    rows: list[dict[str, Any]] = []
    lines: dict[tuple[float, ...], int] = {}  # of the runs, by width, share and seed
    for line, row in read_jsonl(path, REMEDY):
        if missing := [name for name in (*NUMBERS, *COMMON) if name not in row]:
            raise InputError(f"{path}, line {line}: no {', '.join(missing)}. Remove the line, and run the grid again.")
        for name in NUMBERS:
            value, (least, most) = row[name], LIMITS.get(name, (int(name != "seed"), MOST))
            whole = "" if name in LIMITS else "whole "
            if not is_time(value) or not least <= value <= most or (whole and value != int(value)):
                expected = f"a {whole}number from {least:g} to {most:g}"
                raise InputError(
                    f"{path}, line {line}: {name} is {quoted(value)}, expected {expected}. Mend or remove the line."
                )
        if rows and (other := [name for name in COMMON if row[name] != rows[0][name]]):
            raise InputError(
                f"{path}, line {line}: {other[0]} differs from that of the first line, so that the runs make no common "
                "curve. Keep the runs of each in a file of their own."
            )
        run_of_grid = tuple(row[name] for name in ONE_RUN)
        if (first := lines.setdefault(run_of_grid, line)) != line:
            told = ", ".join(f"{name} {row[name]}" for name in ONE_RUN)
            raise InputError(f"{path}, lines {first} and {line}: both are the run of {told}. Remove one of them.")
        rows.append(row)
    return sorted(rows, key=lambda row: (row["width"], row["share"], row["seed"]))


# The report


def report(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print the runs and both fits, write the same as Markdown, and draw."""
    figure, axes = figure_for(str(args.output), columns=2, figsize=(11, 4.5))
    cells = [[row[name] for name in NUMBERS] for row in rows]
    print_table(list(COLUMNS), cells, left=0)
    found, said = {}, []
    for name, counted in COUNTED.items():
        runs = Runs(*(np.array([row[key] for row in rows], dtype=float) for key in (name, "tokens", "loss")))
        found[name] = fit(runs, args.draws)
        said.append(f"Parameters {counted}: " + " ".join(sentences(found[name], runs, args.draws)))
    print(*said, sep="\n")
    with atomic_write(args.output.with_suffix(".md"), "w") as file:
        file.write(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n")
        file.writelines(f"| {' | '.join(map(shown, row))} |\n" for row in cells)
        file.writelines(f"\n{line}\n" for line in said)
    draw(axes, rows, found["parameters"].law)
    figure.suptitle(caption(found["parameters"]), fontsize=9)
    save_figure(figure, str(args.output))
    print(f"wrote {args.output.with_suffix('.md')}")


def shown(cell: float) -> str:
    """A number of a table: a loss or share with as many digits as it needs, a count with commas."""
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4f}" if cell > 1 else f"{cell:g}"


def sentences(found: Found, runs: Runs, draws: int) -> Iterator[str]:
    """What a fit says, in sentences: its numbers only where they are identified."""
    if found.law is None:
        yield f"the law is not fitted: {'; '.join(found.doubts)}."
        return
    law = found.law
    if found.doubts:
        yield f"the exponents are not identified, so none is given: {'; '.join(found.doubts)}."
    else:
        yield f"loss = {law.floor:.3g} + {law.a:.3g} / N^{law.alpha:.3f} + {law.b:.3g} / D^{law.beta:.3f} nats."
        (low, high), (least, most) = found.alpha, found.beta
        yield f"alpha is in [{low:.3f}, {high:.3f}] and beta in [{least:.3f}, {most:.3f}] in 95 % of {draws} fits to"
        yield "runs drawn again with replacement: how much they depend on which runs were made, and not on the data,"
        yield "the held-out users or the learning rate, which all runs share."
    yield f"R² of log losses: {found.r_squared:.4f}, on the {len(runs.losses)} runs that were fitted."
    check = predict_largest(runs)
    if check is None:
        yield "There are too few smaller runs to predict the largest from."
        return
    error, guess = check.predicted - check.measured, check.best_smaller - check.measured
    yield f"Fitted without the largest run, the law predicts {check.predicted:.4f} nats for it, and"
    yield f"{check.measured:.4f} were measured: an error of {error:+.4f}. The best smaller run, as a guess, errs by"
    yield f"{guess:+.4f}."


def caption(found: Found) -> str:
    """What the dashed curves of the plot are."""
    if found.law is None:
        return "no law is fitted"
    return "dashed: the fitted law" + (", whose exponents are not identified" if found.doubts else "")


def draw(axes: Any, rows: list[dict[str, Any]], law: Law | None) -> None:
    """Loss against tokens, a line for each width, and against parameters, a line for each share; the law is dashed."""
    sides = (("tokens", "target tokens seen, D", "width"), ("parameters", "parameters without tables, N", "share"))
    for one, (across, label, line) in zip(axes, sides, strict=True):
        for value in sorted({row[line] for row in rows}):
            mine = [row for row in rows if row[line] == value]
            places = sorted({row[across] for row in mine})
            means = [np.mean([row["loss"] for row in mine if row[across] == place]) for place in places]
            (drawn,) = one.plot(places, means, marker="o", label=f"{line} {value:g}")
            if law and len(places) > 1:
                curve = np.geomspace(places[0], places[-1], 50)
                fixed = np.mean([row["parameters" if across == "tokens" else "tokens"] for row in mine])
                sizes = (fixed, curve) if across == "tokens" else (curve, fixed)
                one.plot(curve, law.loss(*sizes), "--", color=drawn.get_color())
        one.set(xscale="log", yscale="log", xlabel=label, ylabel="held-out loss (nats per target token)")
        one.yaxis.set_major_formatter("{x:g}")
        one.yaxis.set_minor_formatter("{x:g}")
        one.grid(alpha=0.3, which="both")
        one.legend(fontsize=8)


if __name__ == "__main__":
    run(main)
