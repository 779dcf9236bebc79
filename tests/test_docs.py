"""README.md and docs/: every command is run or read by its script's parser; links, files and names exist."""

import argparse
import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from model import RecGPT, RecGPTConfig
from tests.conftest import ROOT
from utils.checkpoint import save_state
from utils.config import read_settings
from utils.training.settings import Settings

PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("[!.]*/**/README.md")))]
PAGES += [f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md"))]
FOLDERS = ("utils", "data_processing", "serving", "benchmarks", "figures")
SOURCES = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)

# What is run as it stands; of all other commands the parsers read the flags.
SCRIPTS = "import_dataset make_dataset data_process_1 TextEncoder_batch data_process_2 pre_train_data_process pack"
RUN = {f"data_processing/{name}.py" for name in f"{SCRIPTS} make_token_list make_eval make_pre_train".split()}
RUN |= {"eval.py", "predict.py", "export.py", "ae_trainer.py", "utils/plot_logs.py", "figures/pipeline.py"}
RUN |= {"serving/bundle.py", "serving/recommend.py", "data_processing/export_dataset.py", "utils/trec.py"}
RUN |= {"utils/table.py", *(str(path.relative_to(ROOT)) for path in (ROOT / "utils/plots").glob("*.py"))}
FASTER = {"ae_trainer.py": ["--epoch", "1"]}
LAUNCHERS = {
    "accelerate": ("accelerate.commands.launch", "launch_command_parser"),
    "torchrun": ("torch.distributed.run", "get_args_parser"),
}


def fences(page: str, language: str) -> list[str]:
    return [text for found, text in FENCE.findall((ROOT / page).read_text(encoding="utf-8")) if found == language]


def commands(page: str) -> list[list[str]]:
    lines = "".join(fences(page, "bash")).replace("\\\n", " ").splitlines()
    return [script_first(words) for line in lines if (words := shlex.split(line, comments=True))]


def script_first(words: list[str]) -> list[str]:
    """`python -m utils.plot_logs …` and `python eval.py …` as utils/plot_logs.py … and eval.py …"""
    if words[:2] == ["python", "-m"]:
        return [f"{words[2].replace('.', '/')}.py", *words[3:]]
    return words[1:] if words[0] in ("python", ".venv-peers/bin/python") else words


def read(monkeypatch, words: list[str], complete: bool = True) -> None:
    """Hold a command against the parsers of its programs, without the work; `complete`: with all that they require."""
    program, *flags = words
    if program == "bash":
        subprocess.run(["bash", "-n", ROOT / flags[0]], check=True)
        read(monkeypatch, ["pre_train.py", *flags[1:]])  # run.sh passes them on
    elif program == "source":
        assert flags[0] in (ROOT / "utils/venv.sh").read_text()
    elif program == "pip":
        needed = "".join(path.read_text() for path in ROOT.glob("requirements*.txt"))
        for name in flags[1:]:
            assert name == "-r" or (ROOT / name).is_file() or re.search(rf"^{name}==", needed, re.M), name
    elif program in LAUNCHERS:
        module, parser = LAUNCHERS[program]
        flags = flags[program == "accelerate" :]  # accelerate launch, torchrun
        flags += [] if complete or "pre_train.py" in flags else ["pre_train.py"]
        launched = getattr(importlib.import_module(module), parser)().parse_args(flags)
        read(monkeypatch, [launched.training_script, *launched.training_script_args], complete)
    else:
        assert program.endswith(".py"), f"how is {program} to be read?"
        parser = parser_of(monkeypatch, program)
        for action in () if complete else parser._actions:
            action.required = False
        parsed, others = parser.parse_known_args(flags)
        if str(getattr(parsed, "config", None)).startswith("configs/"):
            read_settings(ROOT / parsed.config, Settings)
        if others:  # this one passes on what it does not know
            assert program == "benchmarks/steady.py", others
            read(monkeypatch, ["pre_train.py", *others])


class Caught(Exception):  # noqa: N818
    """A parser, where a script would parse its command line."""


def parser_of(monkeypatch, script: str) -> argparse.ArgumentParser:
    def catch(parser, *_):
        raise Caught(parser)

    with monkeypatch.context() as patched, pytest.raises(Caught) as caught:
        for name in ("parse_args", "parse_known_args"):
            patched.setattr(argparse.ArgumentParser, name, catch)
        call(patched, [script])
    return caught.value.args[0]


def call(monkeypatch, words: list[str]) -> None:
    """The main function of a script, with a command line as it is typed."""
    monkeypatch.setattr(sys, "argv", words)
    importlib.import_module(words[0].removesuffix(".py").replace("/", ".")).main()


class Encoder:
    """Stands for a SentenceTransformer of the release's width."""

    def __init__(self, *_, **__): ...

    def get_embedding_dimension(self) -> int:
        return 768

    def encode(self, texts, **_):
        rows = np.stack([np.random.default_rng(list(text.encode())).standard_normal(768) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory, house) -> Path:
    """The files that the pages speak of, small."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("ckpt", "vae_ckpt", "data"):
        shutil.copytree(house / name, folder / name)
    weights, tokenizer = folder / "ckpt/recgpt_layer_3_weight.pt", folder / "vae_ckpt/vae_len4_fsq88865_ep90.pt"
    (folder / "ckpt/layer_3_epoch_4.pt").hardlink_to(weights)
    config = RecGPTConfig(layers=2, width=64, predicts="items")
    for name in ("my_shop/layer_{}_best.pt", "my_shop_whole/layer_{}_last.pt", "random/layer_{}_best.pt"):
        (folder / "ckpt" / name).parent.mkdir()
        (folder / "ckpt" / name.format(3)).hardlink_to(weights)
        noted = {"config": {"heads": 1, "predicts": "items"}}
        save_state(folder / "ckpt" / name.format(2), RecGPT(config).state_dict(), noted)
    for seed in range(3):
        noted["training"] = {"seed": seed, "width": 64}
        (folder / f"ckpt/seed_{seed}").mkdir()
        save_state(folder / f"ckpt/seed_{seed}/layer_2_best.pt", RecGPT(config).state_dict(), noted)
    shutil.copytree(folder / "data/test/steam", folder / "data/test/my_shop")

    built = folder / "data/sample/built"
    for name in ("ckpt", "vae_ckpt", "fine_tuned"):
        (built / name).mkdir(parents=True)
    (built / "fine_tuned/layer_3_best.pt").hardlink_to(weights)
    (built / "ckpt/layer_3_epoch_0_model_09.pt").hardlink_to(weights)
    (built / "vae_ckpt/vae_len4_fsq88865_ep30.pt").hardlink_to(tokenizer)
    (built / "eval").symlink_to(folder / "data/eval")
    (built / "pets").symlink_to(folder / "data/test/steam")
    (built / "crafts").symlink_to(folder / "data/test/targets")

    users, items = range(30), range(40)
    had = {user: [(7 * user + 3 * place) % len(items) for place in range(10)] for user in users}
    clicks = [f"u{user},B{item},2024-01-{day:02d}" for user in users for day, item in enumerate(had[user], start=1)]
    write(folder / "clicks.csv", ["user,item,time", *clicks])
    write(folder / "products.csv", ["item,title,brand", *(f"B{item},pen number {item},Bic" for item in items)])
    write(folder / "new.csv", ["item,title", "N7,red pen"])
    write(folder / "changed.csv", ["item,title", "B5,blue pen"])
    for shop in ("my_shop", "shop_a", "shop_b", "shop_c"):
        write(folder / shop / "items.jsonl", [json.dumps({"id": i, "text": {"title": f"{shop} {i}"}}) for i in items])
        write(folder / shop / "sequences.jsonl", [json.dumps({"user": f"u{u}", "items": had[u]}) for u in users])
    reviews = [
        json.dumps({"user_id": f"u{user}", "parent_asin": f"B{item}", "timestamp": time})
        for user in users
        for time, item in enumerate(had[user])
    ]
    write(folder / "data/raw/raw/review_categories/Baby_Products.jsonl", reviews)
    products = [json.dumps({"parent_asin": f"B{item}", "title": f"rattle {item}"}) for item in items]
    write(folder / "data/raw/raw/meta_categories/meta_Baby_Products.jsonl", products)
    for name in ("pre_train", "sample", "steady"):
        write(folder / f"logs/{name}.jsonl", [json.dumps({"step": step, "loss": 9.0 - step}) for step in (1, 2)])
    for seed in range(3):
        started = {"step": 0, "start": {"seed": seed}, "guessing_by": "item frequencies", "guessing_loss": 9.0}
        write(folder / f"logs/seed_{seed}.jsonl", map(json.dumps, [started, {"step": 1, "loss": 8.0 + seed}]))
    for name in ("docs", "figures"):
        (folder / name).mkdir()
    return folder


def write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_commands(page, small, monkeypatch):
    """In the order of the page, in one directory; what takes minutes, GPUs or a network is read by its parser."""
    monkeypatch.chdir(small)
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Encoder))
    for words in commands(page):
        read(monkeypatch, words)
        if words[0] in RUN:
            call(monkeypatch, words + FASTER.get(words[0], []))
    for block in fences(page, "python"):
        exec(compile(block, page, "exec"), {})


@pytest.mark.parametrize("page", PAGES)
def test_code_between_backticks(page, small, monkeypatch):
    """Scripts exist, and accept the flags that they are named with; a flag by itself is one of some script."""
    monkeypatch.chdir(small)
    scripts = {path.name: str(path.relative_to(ROOT)) for path in [*ROOT.glob("tests/*.py"), *SOURCES[::-1]]}
    runnable = [str(path.relative_to(ROOT)) for path in SOURCES if "\ndef main(" in path.read_text(encoding="utf-8")]
    known = {flag for script in runnable for flag in parser_of(monkeypatch, script)._option_string_actions}
    prose = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for span in re.findall(r"`([^`]+)`", prose):
        words = script_first(shlex.split(span)) if "'" not in span else [span]
        if words[0].endswith((".py", ".sh")):
            script = words[0] if (ROOT / words[0]).exists() else scripts[words[0]]
            if words[1:]:
                read(monkeypatch, [script, *words[1:]], complete=False)
        elif words[1:] and words[0] in ("bash", "pip", *LAUNCHERS):
            read(monkeypatch, words, complete=False)
        elif words[0].startswith("--"):
            assert words[0] in known, span


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_blocks_and_links_that_resolve(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert {language for language, _ in FENCE.findall(text)} <= {"bash", "python", "text", "bibtex", "diff"}
    prose = FENCE.sub("", text)
    assert "```" not in prose and not re.search(r"^ {4}", prose, re.M), "commands stand in ```bash blocks"
    assert all(len(line) <= 120 or line.startswith("|") for line in text.splitlines() if "](" not in line)
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            titles = re.findall(r"^#+ (.*)$", FENCE.sub("", target.read_text(encoding="utf-8")), re.M) if anchor else []
            slugs = [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles]
            assert not anchor or anchor in slugs, link


def test_the_tree_of_the_readme_is_that_of_the_repository():
    (tree,) = (text for text in fences("README.md", "text") if text.startswith("pre_train.py"))
    listed, folders = set(), []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 4, line.split()[0]
        folders[depth:] = [name] if name.endswith("/") else []
        path = "".join([*folders[:depth], name])
        assert (ROOT / path).exists() and (path.endswith("/") or line.split()[1:]), path
        listed.add(path)
    assert {str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"} <= listed


def test_the_code_is_where_the_table_says():
    rows = re.findall(r"^\| .* \| (\S.*\.py) \| (`.*) \|$", (ROOT / "docs/architecture.md").read_text(), re.M)
    assert len(rows) > 25
    for files, names in rows:
        nodes = [node for file in files.split(", ") for node in ast.walk(ast.parse((ROOT / file).read_text()))]
        defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assert set(re.findall(r"\w+", names)) <= defined, f"{files}: {names}"
