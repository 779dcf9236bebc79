"""What the parts of the model are worth: each is left out of a small pre-training on real data, with several seeds.

    python benchmarks/ablations.py path/to/real --work data/ablations
    python benchmarks/ablations.py path/to/real --work data/ablations --seeds 0 --minutes 30
    python benchmarks/ablations.py path/to/real --work data/ablations --report

Trains on the --pre_train domains a model as it is in the paper, one with causal attention, one without auxiliary
embeddings and one on random codes, each with every one of --seeds; the first is also searched without the catalog. They
rank the last items of users of the --pre_train domains, whose lists they know up to the last but one, and zero-shot
those of --zero_shot domains, which no training has seen. DIR is as benchmarks/real_data.py reads it.

Every step is kept in --work and not repeated; --minutes M starts no step after so many minutes, and the next call goes
on. --report prints tables from what there is.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import os
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.real_data import Step, gains, make_data_set, make_pre_train, pre_train
from utils.cli import parser, positive_float, run, seed
from utils.compare import MODEL, intervals
from utils.files import read_jsonl
from utils.util import print_table

LAYERS = 3
WEIGHTS = f"layer_{LAYERS}_last.pt"
SETTINGS = f"--tf_layer {LAYERS} --width 64 --epoch 2 --batch_size 64 --lr 2e-3 --schedule cosine --warmup 0.05"
SETTINGS += " --max_grad_norm 1 --save_last"
TOKENIZER, RANDOM = "vae_len4_fsq88865_ep10.pt", "random:0"
USERS = 5000  # of a domain that are ranked, at most
FULL, FREE = "as in the paper", "free search"
TRAINED = {  # what a model is trained with
    FULL: "",
    "causal attention": "--attention causal",
    "no auxiliary embeddings": "--no_auxiliary",
    "random codes": "",
}
VARIANTS = (*TRAINED, FREE)  # the last with the weights of the first


def main() -> None:
    """Prepare, train, rank, report."""
    flags = parser(__doc__)
    flags.add_argument("data", type=Path, metavar="DIR", help="folder of the domains")
    flags.add_argument("--work", type=Path, required=True, metavar="DIR", help="where everything is made, and kept")
    domains = {"nargs": "+", "metavar": "DOMAIN"}
    flags.add_argument("--pre_train", default=["amazon_toys", "amazon_beauty"], help="domains to train on", **domains)
    flags.add_argument("--zero_shot", default=["amazon_office"], help="domains that no training sees", **domains)
    flags.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2], help="of training")
    flags.add_argument("--minutes", type=positive_float, default=1e6, help="start nothing after so many")
    flags.add_argument("--device", default="cpu", help="of training and ranking")
    flags.add_argument("--report", action="store_true", help="only print tables of what there is")
    args = flags.parse_args()
    args.work = args.work.resolve()
    if not args.report:
        deadline = time.monotonic() + 60 * args.minutes
        for domain in [*args.pre_train, *args.zero_shot]:
            make_data_set(args.data, domain, args.work / "sets" / domain, USERS)
            without_log(args.work / "sets" / domain, args.work / "ranked" / domain)
        for step in steps(args):
            step.run(deadline)
    report(args)


def without_log(data_set: Path, output: Path) -> None:
    """Give the files that predict.py ranks by other names, without the log: its rules are not asked for here."""
    output.mkdir(parents=True, exist_ok=True)
    for name in ("test.pkl", "item_text_embeddings.npy", "item_text_embeddings.json"):
        if not (output / name).exists():
            os.link(data_set / name, output / name)


def steps(args: argparse.Namespace) -> Iterator[Step]:
    """All that is made, in an order in which nothing waits for what comes later: seed by seed."""
    work, sets = args.work, [args.work / "sets" / domain for domain in args.pre_train]
    vae = work / "tokenizer" / TOKENIZER
    matrices = [str(one / "item_text_embeddings.npy") for one in sets]
    fit = ["ae_trainer.py", "--embeddings", *matrices, "--output", str(vae.parent), "--epoch", "11"]
    yield Step(vae, [[*fit, "--device", args.device]])
    for codes, folder in ((str(vae), "codes"), (RANDOM, "random")):
        yield Step(work / folder / "whole/dataset.json", [make_pre_train(list(map(str, sets)), codes, work / folder)])
    for number in args.seeds:
        for variant, flags in TRAINED.items():
            folder, codes = work / "runs" / variant / str(number), "random" if variant == "random codes" else "codes"
            command = pre_train(work / codes, folder, number, args.device, f"{SETTINGS} {flags}")
            training = Step(
                folder / "trained.done", [command], marks=True
            )  # weights are written where it is stopped, too
            yield training
            loss = ["eval.py", "--data_path", str(work / codes / "eval"), "--device", args.device, "--ckpt_path"]
            results = ["--results", str(folder / "loss.jsonl")]
            yield Step(folder / "loss.jsonl", [[*loss, str(folder / WEIGHTS), *results]], [training])
        for variant in VARIANTS:
            for domain in [*args.pre_train, *args.zero_shot]:
                yield rank(args, variant, domain, number, vae)


def rank(args: argparse.Namespace, variant: str, domain: str, number: int, vae: Path) -> Step:
    """Rank the last items of a domain's users by one model."""
    trained = args.work / "runs" / (FULL if variant == FREE else variant) / str(number)
    command = ["predict.py", "--dataset", str(args.work / "ranked" / domain), "--ckpt_path", str(trained / WEIGHTS)]
    command += [
        "--topk",
        "10",
        "--vae_ckpt",
        RANDOM if variant == "random codes" else str(vae),
        "--device",
        args.device,
    ]
    command += ["--search", "free"] if variant == FREE else []
    made = found(args, variant, domain, number)
    command += ["--per_user", str(made), "--results", str(made.with_suffix(".jsonl"))]
    return Step(made, [command], [Step(trained / "trained.done", [])])


def found(args: argparse.Namespace, variant: str, domain: str, number: int) -> Path:
    """What each user of a domain gets, as predict.py --per_user writes it; beside it the rows of --results."""
    return args.work / "ranks" / variant / domain / f"{number}.npz"


# Tables


def report(args: argparse.Namespace) -> None:
    """Print what there is: the loss of each variant, and by domain NDCG@10 and the differences to the full model."""
    losses = {variant: seed_losses(args, variant) for variant in TRAINED}
    rows = [[name, len(values), *mean_and_deviation(values)] for name, values in losses.items() if values]
    if rows:
        print("\nloss on held-out last items, nats per code")
        print_table(["variant", "seeds", "loss", "deviation"], rows)
    for domain in [*args.pre_train, *args.zero_shot]:
        by_seed = {
            variant: {number: gains(found(args, variant, domain, number)).get(MODEL) for number in args.seeds}
            for variant in VARIANTS
        }
        by_seed = {
            variant: {number: values for number, values in seeds.items() if values is not None}
            for variant, seeds in by_seed.items()
        }
        if by_seed[FULL]:
            kind = "zero-shot" if domain in args.zero_shot else "trained on"
            users = len(next(iter(by_seed[FULL].values())))
            print(f"\n{domain} ({kind}), {users} users whose target is new to them: NDCG@10")
            print_domain(args, domain, by_seed)


def seed_losses(args: argparse.Namespace, variant: str) -> list[float]:
    """The held-out losses of a variant, in nats, one for each seed that there is."""
    paths = [args.work / "runs" / variant / str(number) / "loss.jsonl" for number in args.seeds]
    return [record["loss"] for path in paths if path.exists() for _, record in read_jsonl(path, "")]


def print_domain(args: argparse.Namespace, domain: str, by_seed: dict[str, dict[int, np.ndarray]]) -> None:
    """Print a row for each variant: mean and deviation over seeds, and the paired difference to the full model.

    The interval is over users, of whose NDCG (U,) the mean over the seeds that both have is taken.
    """
    rows = []
    for variant, seeds in by_seed.items():
        if not seeds:
            continue
        row = [variant, len(seeds), *mean_and_deviation([values.mean() for values in seeds.values()])]
        both = [number for number in seeds if number in by_seed[FULL]]
        if variant == FULL or not both:
            rows.append([*row, "", ""])
            continue
        (one,) = intervals(np.mean([seeds[number] - by_seed[FULL][number] for number in both], axis=0)[None])
        row.append(f"{one['difference']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]")
        rows.append([*row, invalid(args, variant, domain, list(seeds))])
    print_table(["variant", "seeds", "NDCG@10", "deviation", "against the full model", "no item"], rows)


def invalid(args: argparse.Namespace, variant: str, domain: str, seeds: list[int]) -> str:
    """The share of the ten places that codes of no item take, mean over seeds; empty where they take none."""
    paths = [found(args, variant, domain, number).with_suffix(".jsonl") for number in seeds]
    shares = [record["invalid@10"] for path in paths for _, record in read_jsonl(path, "") if "invalid@10" in record]
    return f"{np.mean(shares):.1%}" if shares else ""


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample deviation; NaN for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


if __name__ == "__main__":
    run(main)
