"""The import direction: ``simulations -> {strategies, clients} -> kdfed``, checked on the source."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kdfed", "strategies", "clients", "simulations")
FORBIDDEN = {
    "kdfed": {"flwr", "ray", "strategies", "clients", "simulations"},
    "strategies": {"clients", "simulations"},
    "clients": {"strategies", "simulations"},
    "simulations": set(),
}
EXCEPT = {
    "kdfed/private/flwr.py": {"flwr"},
    "kdfed/private/ray.py": {"ray"},
    "kdfed/messages.py": {"flwr"},
}
"""Files that may import a library which their package may not."""

PRIVATE = {
    "kdfed.private.flwr": {"kdfed/messages.py"},
    "kdfed.private.ray": set(),
}
"""Modules that bring a library in by the back door -> the files of kdfed that may import them."""

HEAVY = {
    "PIL",
    "datasets",
    "flwr_datasets",
    "jinja2",
    "matplotlib",
    "mlxtend",
    "pandas",
    "psutil",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
    "torchvision",
}
"""What only an extra installs: imported where it is needed, never at the top of a module."""


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the top-level name and the line of everything that code imports, lazily or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], node.lineno
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            argument = node.args[0]
            if called in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                yield str(argument.value).partition(".")[0], node.lineno


def dependencies(name: str, tree: ast.AST, modules: Collection[str]) -> set[str]:
    """Return the modules that code imports, lazily or for type checkers alone too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
    return found & set(modules) - {name}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the modules that import each other, directly or through others."""
    reached = {name: set(direct) for name, direct in graph.items()}
    changed = True
    while changed:
        wider = {name: found.union(*(reached[one] for one in found)) for name, found in reached.items()}
        changed, reached = wider != reached, wider
    every = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]}
    return [list(circle) for circle in sorted(every)]


def at_import_time(tree: ast.Module) -> ast.Module:
    """Return the code that runs when a module is imported: no function bodies, nothing for type checkers."""

    class Pruner(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            if "TYPE_CHECKING" in ast.unparse(node.test):
                return None
            return self.generic_visit(node)

    pruned = Pruner().visit(tree)
    assert isinstance(pruned, ast.Module)
    return pruned


def offences(path: Path, names: set[str], *, lazily_too: bool) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    code = tree if lazily_too else at_import_time(tree)
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}" for name, line in imported(code) if name in names
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    files = sources(package)
    assert files, f"no source in {package}/"
    assert [
        offence
        for path in files
        for offence in offences(path, FORBIDDEN[package] - EXCEPT.get(place(path), set()), lazily_too=True)
    ] == []


@pytest.mark.parametrize("module", PRIVATE)
def test_kdfed_does_not_import_a_library_through_what_is_private(module: str) -> None:
    importing = {
        place(path)
        for path in sources("kdfed")
        if dependencies("", ast.parse(path.read_text(encoding="utf-8")), [module])
    }
    assert importing <= PRIVATE[module]


@pytest.mark.parametrize("package", PACKAGES)
def test_heavy_libraries_are_imported_lazily(package: str) -> None:
    assert [offence for path in sources(package) for offence in offences(path, HEAVY, lazily_too=False)] == []


def test_no_files_import_each_other() -> None:
    trees = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for package in PACKAGES
        for path in sources(package)
    }
    assert circles({name: dependencies(name, tree, trees) for name, tree in trees.items()}) == []


def test_no_relative_import_hides_the_direction() -> None:
    relative = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in PACKAGES
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert relative == []


def test_the_check_sees_lazy_and_dynamic_imports() -> None:
    code = "def f():\n    import ray.util\n    importlib.import_module('flwr.app')\n"
    assert {name for name, _ in imported(ast.parse(code))} == {"ray", "flwr"}
    assert list(imported(at_import_time(ast.parse(code)))) == []


def test_the_check_sees_a_circle_of_lazy_imports_and_of_those_for_type_checkers() -> None:
    code = {
        "p": "from p.one import a",
        "p.one": "def f():\n    from p import two",
        "p.two": "if TYPE_CHECKING:\n    import p.three",
        "p.three": "from p.one import a\nfrom p.four import b",
        "p.four": "import os",
    }
    graph = {name: dependencies(name, ast.parse(text), code) for name, text in code.items()}
    assert graph["p.one"] == {"p.two"}
    assert circles(graph) == [["p.one", "p.three", "p.two"]]
    assert circles({**graph, "p.three": set()}) == []


DEVICE = HEAVY | {"optuna", "sympy", "torch._dynamo", "torch._inductor"}
"""What a device's client never imports: it would cost each device memory, and time before it is ready."""

STEP = """
import json, sys
import clients.client_app
imported = sorted(sys.modules)
import torch
from kdfed.cohort import train_cohort
from kdfed.data import Examples
from kdfed.local import plain_loss
from kdfed.models import build_model, state_of
from kdfed.settings import ModelSettings, OptimiserSettings
from kdfed.setup import Setup
from kdfed.task import CLASSIFICATION
from kdfed.train import predict

setup = Setup(CLASSIFICATION, torch.device("cpu"), threads=1, precision="float32")
examples = Examples(torch.rand(24, 1, 8, 8), torch.arange(24) % 3)
for optimizer in ("sgd", "adam", "adamw"):
    model = build_model(ModelSettings(name="cnn"), (1, 8, 8), 3, seed=0)
    settings = OptimiserSettings(optimizer=optimizer, epochs=1, batch_size=8, lr=0.05)
    parts = train_cohort(
        model, state_of(model), examples, [24], settings, plain_loss(CLASSIFICATION), [0], setup=setup
    )
    assert [result.steps for part in parts for result in part.results] == [3]
    predict(model, examples.inputs)
print(json.dumps([imported, sorted(sys.modules)]))
"""


@pytest.mark.slow
def test_a_devices_client_imports_nothing_heavy_and_training_imports_nothing_more() -> None:
    """What training would import is imported before a client is forked, see ``clients.warm``."""
    done = subprocess.run([sys.executable, "-c", STEP], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    imported, trained = (set(names) for names in json.loads(done.stdout))
    assert {"torch", "flwr", "kdfed.cohort", "clients.client_app"} <= imported
    assert imported & DEVICE == set()
    assert trained & DEVICE == set()
    ours = {name for name in trained - imported if name.partition(".")[0] in (*PACKAGES, "torch", "numpy")}
    assert ours == set()
