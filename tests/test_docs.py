"""README and docs say what is so: commands, keys, code and links are checked."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import yaml

from simulations.experiments import build_experiment, merge

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
)
SMALLEST = {"name": "docs", "arms": {"cold": {"start": "random"}}}


def blocks(language: str) -> list[Any]:
    """Return the code blocks of a language, in all pages, named by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match[1], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def commands(block: str) -> Iterator[list[str]]:
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def targets_of_makefile() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def options_of(command: str) -> set[str]:
    import click
    import typer

    from simulations.cli import app

    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    subcommands: dict[str, Any] = group.commands
    assert command in subcommands, f"there is no `kdfed {command}`"
    return {option for parameter in subcommands[command].params for option in parameter.opts}


# ----------------------------------------------------------------------------- the reference


def reference_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "generate_reference", ROOT / "docs" / "generate_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_experiment_reference_is_up_to_date() -> None:
    script = reference_script()
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), (
        "run `make docs`, or docs/generate_reference.py"
    )


def test_every_key_of_the_reference_has_a_meaning() -> None:
    rows = [row for row in reference_script().page().splitlines() if row.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if row.rstrip("| ").endswith(("–", "required`"))] == []


# ----------------------------------------------------------------------------- code blocks


@pytest.mark.parametrize("block", blocks("bash"))
def test_commands_exist(block: str) -> None:
    for words in commands(block):
        if words[0] == "make":
            assert set(words[1:]) <= targets_of_makefile()
        elif words[0] == "kdfed":
            options = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            assert options <= options_of(words[1])
        else:
            assert words[0] in {"source", "pip", "flwr", "export"}, f"add {words[0]!r} to this test"


@pytest.mark.parametrize("block", blocks("bash"))
def test_keys_that_commands_set_exist(block: str) -> None:
    from kdfed.config import parse_set

    for words in commands(block):
        if words[0] == "kdfed" and "--set" in words:
            after = words[words.index("--set") + 1 :]
            assignments = [word for word in after if "=" in word and not word.startswith("--")]
            assert assignments
            partition = {"partition": {"kind": "dirichlet", "alpha": 0.1}}
            build_experiment(merge({**SMALLEST, **partition}, parse_set(assignments)))


@pytest.mark.parametrize("block", blocks("yaml"))
def test_experiments_are_valid(block: str) -> None:
    build_experiment({**SMALLEST, **yaml.safe_load(block)})


@pytest.mark.parametrize("block", blocks("python"))
def test_code_compiles_and_imports_what_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [name.name for name in node.names if not hasattr(module, name.name)] == [] or (
                node.module == "__future__"
            )


def test_the_documented_strategy_can_be_built() -> None:
    """Everything before ``.start(`` of the page on PreConsolidation runs as written."""
    text = (ROOT / "docs" / "pre-consolidation.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert code is not None
    names: dict[str, Any] = {}
    module = ast.parse(code[1])
    main = next(node for node in module.body if isinstance(node, ast.FunctionDef))
    main.body = [*main.body[:-2], ast.parse("return FedAvg, arm, data, initial").body[0]]
    main.decorator_list = []
    exec(compile(ast.fix_missing_locations(module), "pre-consolidation.md", "exec"), names)
    strategy, arm, data, _ = names["main"](None, None)
    built = names["PreConsolidation"](strategy(), names["ArmConfig"](arm=arm, data=data, targets=(0.9,)))
    assert built.strategy.fraction_train == 1.0


# ----------------------------------------------------------------------------- CONTRIBUTING


def contributing(heading: str) -> tuple[str, list[str]]:
    """Return a section of CONTRIBUTING, and its blocks of Python."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^ *```python\n(.*?)^ *```", section, re.DOTALL | re.MULTILINE)
    return section, [textwrap.dedent(block) for block in found]


def module_of(path: str) -> ModuleType:
    return importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))


@pytest.mark.parametrize(
    ("heading", "path", "names"),
    [
        ("Add a distillation method", "kdfed/distill/__init__.py", ["METHODS"]),
        ("Add a distillation method", "kdfed/config/sections.py", ["ConsolidationSettings"]),
        ("Add a distillation method", "kdfed/config/checks.py", ["COMBINATIONS", "_refused", "REGRESSION"]),
        ("Add a distillation method", "kdfed/consolidate.py", ["RUNS"]),
        ("Add a distillation method", "simulations/study/settings.py", ["Method"]),
        ("Add a distillation method", "simulations/study/cells.py", ["trials"]),
        ("Add a distillation method", "simulations/study/work.py", ["_settings"]),
        ("Add a partition", "kdfed/config/sections.py", ["PartitionBase", "PartitionSettings"]),
        ("Add a partition", "kdfed/partition.py", ["DEALERS", "PARTITIONS"]),
        ("Add a data source", "kdfed/data/sources.py", ["SOURCES"]),
    ],
)
def test_contributing_names_what_there_is(heading: str, path: str, names: list[str]) -> None:
    section, _ = contributing(heading)
    assert f"`{path}`" in section
    for name in names:
        assert f"`{name}`" in section
        assert hasattr(module_of(path), name)


def test_the_method_of_contributing_trains_by_its_own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its three blocks, put where CONTRIBUTING says, give other weights than vanilla KD; the same twice."""
    import torch

    from kdfed import consolidate as module
    from kdfed.config import sections
    from kdfed.data import Examples
    from kdfed.distill import VanillaConsolidation
    from kdfed.models import build_model, state_of
    from kdfed.settings import ModelSettings

    _, (loss, settings, run) = contributing("Add a distillation method")
    method = ModuleType("kdfed.distill.reverse")
    exec(loss, vars(method))
    in_sections = dict(vars(sections))
    exec(settings, in_sections)
    kind = in_sections["ReverseConsolidation"]
    in_module = {**vars(module), "reverse": method}
    exec(run, in_module)
    assert "`RUNS` (`ReverseConsolidation: _reverse`)" in contributing("Add a distillation method")[0]
    monkeypatch.setitem(module.RUNS, kind, in_module["_reverse"])

    def trained(chosen: Any) -> Any:
        student, *teachers = (build_model(ModelSettings(name="mlp"), (4,), 3, seed) for seed in range(3))
        examples = Examples(
            torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
        )
        result = module.consolidate(student, teachers, examples, examples, chosen, seed=0)
        assert result.steps == 2
        return state_of(student)["1.weight"]

    same = {"epochs": 2, "batch_size": 32}
    ours, again = (trained(kind(method="reverse", **same)) for _ in range(2))
    assert torch.equal(ours, again)
    assert not torch.equal(ours, trained(VanillaConsolidation(**same)))


def test_the_partition_of_contributing_is_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class and a line in DEALERS are what it takes, as CONTRIBUTING says."""
    import numpy as np

    from kdfed import partition
    from kdfed.partitions import PartitionBase

    class Striped(PartitionBase):
        kind: Literal["striped"]

    def striped(settings: Striped, labels: Any, classes: int, generator: Any) -> list[Any]:
        return [np.arange(len(labels))[p :: settings.participants] for p in range(settings.participants)]

    monkeypatch.setitem(partition.DEALERS, Striped, striped)
    labels = np.arange(40) % 4
    made = partition.make_partition(Striped(kind="striped", participants=5), labels, np.arange(40), 4, 0)
    assert sorted(np.concatenate(list(made.indices))) == list(range(40))
    assert made.sizes.tolist() == [8] * 5


# ----------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE))
    docs = ROOT / "docs"
    assert named == {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
