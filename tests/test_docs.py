"""README and docs say what is so: commands, keys, code and links are checked."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from kdfed.config import build_experiment, merge

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
