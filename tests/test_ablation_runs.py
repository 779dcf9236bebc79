"""The experiment of docs/ablations.md: what waits for what, and tables of what there is."""

import json
from argparse import Namespace

import numpy as np
import pytest

from benchmarks import ablations


@pytest.fixture
def args(tmp_path):
    return Namespace(work=tmp_path, pre_train=["a", "b"], zero_shot=["c"], seeds=[0, 1], device="cpu")


def test_every_step_comes_after_what_it_needs(args):
    made, commands = set(), []
    for step in ablations.steps(args):
        assert {need.makes for need in step.needs} <= made
        made.add(step.makes)
        commands += [" ".join(command) for command in step.commands]
    assert len(made) == 3 + 2 * (2 * len(ablations.TRAINED) + 3 * len(ablations.VARIANTS))
    for words, times in (("--attention causal", 2), ("--no_auxiliary", 2), ("--search free", 6), ("random:0", 1 + 6)):
        assert sum(words in command for command in commands) == times
    free = [command for command in commands if "--search free" in command]
    assert all(f"runs/{ablations.FULL}/" in command for command in free), "with the weights of the full model"


def test_a_training_that_was_stopped_is_not_ranked(args):
    folder = args.work / "runs" / ablations.FULL / "0"
    folder.mkdir(parents=True)
    (folder / ablations.WEIGHTS).touch()  # as pre_train.py leaves them on SIGTERM
    steps = [step for step in ablations.steps(args) if step.makes.name in ("loss.jsonl", "0.npz") and step.needs]
    assert not any(step.run(np.inf) for step in steps)


def test_the_tables_say_what_was_found(args, capsys):
    rng = np.random.default_rng(0)
    values = {}
    for variant in (ablations.FULL, ablations.FREE):
        for number in args.seeds:
            made = ablations.found(args, variant, "c", number)
            made.parent.mkdir(parents=True, exist_ok=True)
            values[variant, number] = rng.random(50)
            arrays = {"ndcg: RecGPT": values[variant, number], "group: target is new": np.arange(50) % 2 == 0}
            np.savez(made, **arrays)
            row = {"invalid@10": 0.25 + number / 4} if variant == ablations.FREE else {}
            made.with_suffix(".jsonl").write_text(json.dumps(row) + "\n")
    ablations.report(args)
    said = capsys.readouterr().out
    assert "c (zero-shot), 25 users whose target is new to them" in said
    full, free = (
        [values[variant, number][::2].mean() for number in args.seeds] for variant in (ablations.FULL, ablations.FREE)
    )
    (line,) = (line for line in said.splitlines() if line.startswith(ablations.FREE))
    assert f"{np.mean(free):.4f}" in line and f"{np.std(free, ddof=1):.4f}" in line and "37.5%" in line
    assert f"{np.mean(free) - np.mean(full):+.4f} [" in line
