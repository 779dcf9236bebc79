"""Imports run one way: scripts stand on parts, parts on utils, and no script on another's helpers."""

import ast
from graphlib import TopologicalSorter

from tests.conftest import ROOT

FOLDERS = (
    "utils",
    "utils/plots",
    "utils/training",
    "data_processing",
    "data_processing/parts",
    "data_processing/sample",
    "serving",
)
MODULES = {
    str(path.relative_to(ROOT))[:-3].replace("/", "."): path
    for folder in (".", *FOLDERS)
    for path in (ROOT / folder).glob("*.py")
    if path.name != "__init__.py"
}


def imported(module: str) -> set[str]:
    """The modules of the repository that a module imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found & MODULES.keys()


def room(module: str) -> str:
    return module.rpartition(".")[0]


def test_no_circle():
    TopologicalSorter({module: imported(module) for module in MODULES}).prepare()  # raises CycleError


def test_rooms_stand_on_rooms_below():
    for module in MODULES:
        below = {
            "utils": {"utils"},
            "utils.training": {"utils", "utils.training"},
            "utils.plots": {"", "utils", "utils.plots"},
            "data_processing.parts": {"", "utils", "utils.training", "data_processing.parts"},
            "serving": {"", "utils", "data_processing.parts", "serving"},
        }.get(room(module))
        assert below is None or {room(other) for other in imported(module)} <= below, module


def test_no_script_stands_on_another():
    """But predict.py and others on the tokenizer of ae_trainer.py, and pre_train.py on the loss of eval.py."""
    scripts = {module for module, path in MODULES.items() if "\n    run(main)" in path.read_text(encoding="utf-8")}
    for module in scripts:
        assert imported(module) & scripts <= {"ae_trainer", "eval"}, module
    assert {module for module in scripts if "eval" in imported(module)} == {"pre_train"}
