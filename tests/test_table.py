"""utils/table.py: means over seeds, tests over seeds and users, and what is refused."""

import csv
import doctest
import json
import re
import sys

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from predict import write_users
from utils import alike, paired, table, table_files
from utils.cli import run
from utils.errors import InputError
from utils.files import fingerprint
from utils.metrics import Ranks, TopKAccumulator

NDCG = {"A_1 & B": [0.3, 0.5, 0.4], "rival": [0.2, 0.35, 0.1], "floor": [0.0, 0.0, 0.0]}
USERS = 40


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """Write rows, run the table on them, return what it said, with single spaces."""
    monkeypatch.chdir(tmp_path)

    def run_table(rows: list[dict], flags: str = "", expect: int = 0) -> str:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setattr(sys, "argv", ["table", "rows.jsonl", "--metrics", "ndcg@5", *flags.split()])
        if expect:
            with pytest.raises(SystemExit) as stopped:
                run(table.main)
            assert stopped.value.code == expect
            return capsys.readouterr().err
        table.main()
        return re.sub(" +", " ", capsys.readouterr().out)

    return run_table


def rows_of(seeds: int = 3, **others) -> list[dict]:
    return [
        {"dataset": "shop", "method": method, "seed": seed, "ndcg@5": found[seed], "date": f"2026-11-{seed + 1:02d}"}
        | others
        for seed in range(seeds)
        for method, found in NDCG.items()
    ]


def test_worked_examples():
    for module in (alike, table, paired, table_files):
        failed, tried = doctest.testmod(module, extraglobs={"np": np})
        assert not failed and tried


def test_means_deviations_and_the_best(typed, tmp_path):
    said = typed(rows_of() + [{**row, "dataset": "other"} for row in rows_of(1)], "--output table.csv")
    assert "shop A_1 & B 0.4000 ± 0.1000 (3)*" in said and "other rival 0.2000 (1)" in said
    assert "3 cell(s) have one value of seed only" in said and said.count("*\n") == 2
    with (tmp_path / "table.csv").open() as file:
        lines = {(line["dataset"], line["method"]): line for line in csv.DictReader(file)}
    found = lines["shop", "rival"]
    assert float(found["ndcg@5"]) == np.mean(NDCG["rival"]) and found["ndcg@5 n"] == "3"
    assert float(found["ndcg@5 deviation"]) == np.std(NDCG["rival"], ddof=1)
    assert lines["other", "rival"]["ndcg@5 deviation"] == ""


@pytest.mark.parametrize("metric", ["loss", "published", "invalid@5"])
def test_of_a_loss_the_lowest_is_best(typed, metric):
    rows = [{"method": name, "seed": 0, metric: loss, "ndcg@5": 0.1} for name, loss in (("a", 2.0), ("b", 1.0))]
    said = typed(rows, f"--by method --metrics {metric}")
    assert "1.0000 (1)*" in said and "2.0000 (1)*" not in said


def test_two_settings_of_training_are_compared(typed):
    rows = [
        {
            "dataset": "shop",
            "method": "RecGPT",
            "seed": seed,
            "ndcg@5": value * (1 + seed),
            "training": {"attention": name},
        }
        for name, value in (("causal", 0.1), ("item_block", 0.3))
        for seed in range(3)
    ]
    said = typed(rows, "--by training.attention --metrics ndcg@5 --where method=RecGPT --against item_block")
    assert "causal 0.2000 ± 0.1000 (3)" in said and "item_block 0.6000 ± 0.3000 (3)*" in said
    assert "-0.4000" in said and "3 seeds" in said
    assert "attention" in typed(rows, "--by dataset --metrics ndcg@5", expect=2)


def test_latex_and_markdown(typed, tmp_path):
    typed(rows_of(), "--output table.tex --against rival")
    latex = (tmp_path / "table.tex").read_text()
    assert r"shop & A\_1 \& B & \textbf{0.4000} $\pm$ 0.1000 (3) \\" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 2 and r"95 \% interval" in latex
    typed(rows_of(), "--output table.md")
    assert r"| shop | A\_1 \& B | **0.4000** ± 0.1000 (3) |" in (tmp_path / "table.md").read_text()
    assert "expected a name that ends in" in typed(rows_of(), "--output table.pdf", expect=2)


def test_rows_given_twice(typed):
    rows = rows_of() + [{**rows_of()[0], "ndcg@5": 0.9, "date": "2026-12-01"}]
    said = typed(rows, expect=2)
    assert "rows.jsonl, line 1, and rows.jsonl, line 10, both have dataset shop" in said and "give --last" in said
    assert "0.6000 ± 0.2646 (3)*" in typed(rows, "--last")
    groups = [row | {"group": group} for row in rows_of() for group in ("all users", "target is new")]
    assert "They differ in group, 'all users' and 'target is new'" in typed(groups, expect=2)
    assert typed(groups, "--by group method").count("(3)") == 6


def test_signs_that_a_file_of_tables_would_obey(typed, tmp_path):
    odd = ("[2cm] a", "*b", "~~c~~ &lt; $d$", "=1+1", "-1", "@e")
    rows = [{"method": name, "seed": 0, "ndcg@5": 0.1} for name in odd]
    typed(rows, "--by method --output table.tex")
    latex = (tmp_path / "table.tex").read_text()
    assert "\n{[}2cm] a & " in latex and "\n{*}b & " in latex
    typed(rows, "--by method --output table.md")
    assert r"| \~\~c\~\~ \&lt; \$d\$ | " in (tmp_path / "table.md").read_text()
    typed(rows, "--by method --output table.csv")
    with (tmp_path / "table.csv").open() as file:
        found = [line["method"] for line in csv.DictReader(file)]
    assert found == ["[2cm] a", "*b", "~~c~~ &lt; $d$", "'=1+1", "-1", "'@e"]


def of_run(seed: int, **changed) -> dict:
    """A row as predict.py writes it, with keys of another value by their dotted names."""
    row = rows_of()[3 * seed] | {"cold": False, "search": "exact", "config": {"width": 64}}
    row |= {"settings": {"drop_short": False}, "fingerprints": {"eval.pkl": "a"}}
    row["training"] = {"width": 64, "lr": 1e-3, "tied": False, "data": "a"}
    row["training"] |= {"seed": seed, "log_file": f"{seed}.jsonl", "step": seed}
    for key, value in changed.items():
        part, _, name = key.rpartition(".")
        row |= {part: {**row[part], name: value}} if part else {key: value}
    return row


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("cold", True, "cold is False and True"),
        ("search", "beam", "search is 'exact' and 'beam'"),
        ("config.width", 128, "config.width is 64 and 128"),
        ("training.lr", 0.1, "training.lr is 0.001 and 0.1"),
        ("training.tied", True, "training.tied is False and True"),
        ("training.data", "b", "training.data is 'a' and 'b'"),
        ("settings.drop_short", True, "settings.drop_short is False and True"),
        ("fingerprints.eval.pkl", "b", "fingerprints.eval.pkl is 'a' and 'b'"),
    ],
)
def test_rows_of_other_settings_are_no_seeds(typed, key, value, said):
    if key == "fingerprints.eval.pkl":
        other = of_run(1) | {"fingerprints": {"eval.pkl": value}}
    else:
        other = of_run(1, **{key: value})
    message = typed([of_run(0), other], expect=2)
    assert said in message and f"Add {key} to --by, or choose one with --where" in message
    assert typed([of_run(0), other], f"--by dataset method {key}").count("(1)*") >= 1
    assert "0.4000 ± 0.1414 (2)" in typed([of_run(0), of_run(1)])
    assert "(2)" in typed([of_run(0), other], f"--over {key}")


def test_what_a_run_comes_to_is_no_setting(typed):
    """A run of --refit_of takes as many steps as the run that it repeats took to its best."""
    rows = [of_run(seed, **{"training.refit_of": f"{seed}.pt", "training.max_steps": 9 + seed}) for seed in (0, 1)]
    assert "(2)" in typed(rows)
    older = of_run(1)
    del older["training"]["lr"]
    assert "training.lr is 0.001 and None" in typed([of_run(0), older], expect=2)
    capped = [of_run(seed, **{"training.max_steps": 9 + seed}) for seed in (0, 1)]
    assert "training.max_steps is 9 and 10" in typed(capped, expect=2)


def test_lines_that_are_compared_are_of_one_evaluation(typed):
    rows = [of_run(0), of_run(0, method="rival", search="beam")]
    assert "search is 'exact' and 'beam'" in typed(rows, expect=2)
    assert "beam" in typed(rows, "--by search method")


def test_rows_without_a_seed_and_the_same_seed_written_otherwise(typed):
    for seed in ({"seed": None}, {}):
        rows = [{"dataset": "shop", "method": "a", "ndcg@5": 0.1} | one for one in ({"seed": 0}, seed)]
        assert "line 2: seed is not known, and other rows of shop a have one" in typed(rows, expect=2)
    assert "0.1000 (1)" in typed(rows[1:], "--over method"), "alone in its line it is no other seed"
    same = [{"dataset": "shop", "method": "a", "ndcg@5": 0.1, "seed": seed} for seed in (1, 1.0)]
    assert "both have dataset shop, method a, seed 1." in typed(same, expect=2)
    assert "0.1000 (1)" in typed(same[1:], "--where seed=1") and "0.1000 (1)" in typed(same[:1], "--where seed=1.0")


def test_any_key_stands_in_by_over_and_where(typed):
    rows = [row | {"training": {"width": width, "tied": width == 64}} for width in (64, 128) for row in rows_of()]
    said = typed(rows, "--by method training.width")
    assert "rival 128 0.2167 ± 0.1258 (3)" in said
    only = typed(rows, "--where training.tied=true method=rival --by training.width --over date")
    assert "64 0.2167 ± 0.1258 (3)" in only and "128" not in only
    assert "training.widt: no row has this key (training.width?)" in typed(rows, "--by training.widt", expect=2)
    assert "no row is left" in typed(rows, "--where method=nobody", expect=2)
    assert "There are ndcg@5" in typed(rows, "--metrics ndcg@50", expect=2)
    assert "is not KEY=VALUE" in typed(rows, "--where method", expect=2)


def test_what_is_no_row_is_refused_or_left_out(typed, tmp_path, monkeypatch):
    assert "2 of 11 rows are left out" in typed(rows_of() + [{"ckpt_path": "a"}, {"ndcg@5": None}])
    (tmp_path / "odd.jsonl").write_text('{"ndcg@5": 1}\n[1]\n')
    monkeypatch.setattr(sys, "argv", ["table", "odd.jsonl"])
    with pytest.raises(InputError, match=r"odd.jsonl, line 2: found a JSON list"):
        table.main()


def test_over_seeds_it_is_the_paired_t(typed, tmp_path):
    typed(rows_of(), "--against rival --output table.csv")
    expected = ttest_rel(NDCG["A_1 & B"], NDCG["rival"])
    low, high = expected.confidence_interval()
    with (tmp_path / "table.csv").open() as file:
        first, rival, floor = csv.DictReader(file)
    kind = "ndcg@5 over seeds: "
    assert float(first[kind + "p"]) == pytest.approx(expected.pvalue) and first[kind + "n"] == "3"
    assert [float(first[kind + name]) for name in ("low", "high")] == pytest.approx([low, high])
    ps = [ttest_rel(NDCG[name], NDCG["rival"]).pvalue for name in ("A_1 & B", "floor")]
    corrected = [float(line[kind + "p (Holm)"]) for line in (first, floor)]
    assert min(corrected) == pytest.approx(2 * min(ps)) and max(corrected) == pytest.approx(max(2 * min(ps), max(ps)))
    assert rival[kind + "p"] == ""
    assert "0 comparison(s) over seeds" in typed(rows_of(2), "--against rival")
    assert "There are A_1 & B, rival, floor" in typed(rows_of(), "--against nobody", expect=2)


def test_where_nothing_varies_nothing_is_tested(typed):
    rows = [
        {"dataset": "s", "method": m, "seed": s, "ndcg@5": v} for m, v in (("a", 0.1), ("b", 0.3)) for s in (1, 2, 3)
    ]
    assert "0 comparison(s) over seeds" in typed(rows, "--against a")


def with_users(folder, seeds: int = 2) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Rows with files of users as predict.py writes them, and Hit@1 of each user of the group by method and seed."""
    rows, values = [], {}
    rng = np.random.default_rng(0)
    members = np.arange(USERS) % 4 > 0
    for seed in range(seeds):
        above = {"a": rng.integers(0, 3, USERS), "b": rng.integers(0, 6, USERS)}
        ranks = {name: Ranks(torch.from_numpy(one), torch.ones(USERS, dtype=int)) for name, one in above.items()}
        names = np.array([f"user {user}" for user in range(USERS)], dtype=object)
        write_users(f"{folder}/users_{seed}.npz", names, ranks, [1, 5], {"target is new": members})
        for name, found in ranks.items():
            accumulator = TopKAccumulator([1, 5])
            accumulator.accumulate(found.select(torch.from_numpy(members)))
            row = {"dataset": "s", "method": name, "group": "target is new", "seed": seed, **accumulator.reduce()}
            files = {"per_user": f"users_{seed}.npz"}
            rows.append(row | files | {"fingerprints": {"per_user": fingerprint(folder / files["per_user"])}})
            values[name, seed] = above[name][members] == 0
    return rows, values


def test_over_users_their_values_are_averaged_over_seeds(typed, tmp_path):
    rows, values = with_users(tmp_path)
    said = typed(rows, "--metrics hit@1 --against b")
    ours, theirs = (np.mean([values[name, seed] for seed in (0, 1)], axis=0) for name in ("a", "b"))
    expected = ttest_rel(ours, theirs)
    assert f"{ours.mean() - theirs.mean():+.4f}" in said and table.probability(expected.pvalue) in said
    assert "30 users, mean of 2 seed(s)" in said and "0 comparison(s) over seeds and 1 over users" in said
    for metric in ("ndcg@5", "mrr"):  # its mean over users is that of the rows
        found = [paired.user_values(row, tmp_path / "rows.jsonl", metric).values.mean() for row in rows]
        assert found == pytest.approx([row[metric] for row in rows])


def test_only_metrics_of_the_row_are_compared_over_users(typed, tmp_path):
    """Beyond the largest k of a row, and for numbers that are no rank, nothing is known."""
    rows, _ = with_users(tmp_path)
    assert all(paired.user_values(row, tmp_path / "rows.jsonl", "hit@50") is None for row in rows)
    for metric in (f"ndcg@{10**20}", "ndcg@" + "9" * 4999):
        odd = [row | {metric: 0.1} for row in rows]
        assert "0 over users" in typed(odd, f"--metrics {metric} --against b")


def test_files_of_users_that_do_not_fit(typed, tmp_path):
    rows, _ = with_users(tmp_path)
    path, flags = tmp_path / "users_1.npz", "--metrics hit@1 --against b"
    with np.load(path) as saved:
        arrays = dict(saved)

    def refused(**changed) -> str:
        np.savez(path, **{name: one for name, one in {**arrays, **changed}.items() if one is not None})
        for row in rows:
            row["fingerprints"] = {"per_user": fingerprint(tmp_path / row["per_user"])}
        paired.arrays_of.cache_clear()
        return typed(rows, flags, expect=2)

    assert "have other users" in refused(users=arrays["users"][::-1])
    assert "does not hold one rank for each user" in refused(users=arrays["users"][1:])
    assert "does not hold ranks" in refused(**{"above: a": arrays["above: a"] - 5})
    assert "does not hold ranks" in refused(**{"above: a": arrays["users"]})
    beyond = np.where(np.arange(USERS) == 1, 2**63 - 1, arrays["above: a"])
    assert "does not hold ranks" in refused(**{"above: a": beyond})
    assert "has no array 'above: a'" in refused(**{"above: a": None})
    path.write_bytes(b"no archive")
    for row in rows:
        row["fingerprints"] = {"per_user": fingerprint(tmp_path / row["per_user"])}
    assert "is not a whole .npz" in typed(rows, flags, expect=2)
    path.write_bytes(b"another")
    assert "is not the file that" in typed(rows, flags, expect=2)
    path.unlink()
    assert "mean of 1 seed(s)" in typed(rows, flags)
