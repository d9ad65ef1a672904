"""README and docs say what is so: commands, keys, code and links are checked."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml

from simulations.experiments import build_experiment, merge
from tests.own.pages import read_page

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
)
SMALLEST = {"name": "docs", "arms": {"cold": {"start": "random"}}}


def blocks(language: str, run: bool = False) -> list[Any]:
    """Return the code blocks of a language, in all pages, named by page and line.

    Those of docs/own are run as they are by other tests; they are left out unless ``run`` is set.
    """
    found = []
    for page in PAGES:
        if page.parent.name == "own" and not run:
            continue
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
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def options_of(words: list[str]) -> set[str]:
    """Return the options of a command of kdfed, given its words: ``deploy check DIR``."""
    import typer

    from simulations.cli import app

    command: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(command, "commands"):
            break
        assert word in command.commands, f"there is no `kdfed {' '.join(words)}`"
        command = command.commands[word]
    return {option for parameter in command.params for option in parameter.opts}


OTHERS = {
    "cd", "export", "flwr", "journalctl", "mkdir", "pip", "python3", "scp", "sh", "source", "ssh",
    "systemctl", "timedatectl",
}  # fmt: skip
"""Commands of the shell and of other packages that pages name."""


def check_command(words: list[str]) -> None:
    """Check that a command exists, and that kdfed's have the options that stand there."""
    if words[0] == "sudo":
        words = words[3:] if words[1] == "-u" else words[1:]
    words = [words[0].rpartition("/")[2], *words[1:]]
    if words[0] == "make":
        assert set(words[1:]) <= targets_of_makefile()
    elif words[0] == "kdfed":
        options = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        assert options <= options_of(words[1:])
    else:
        assert words[0] in OTHERS, f"add {words[0]!r} to OTHERS"


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


@pytest.mark.parametrize("block", blocks("bash", run=True))
def test_commands_exist(block: str) -> None:
    for words in commands(block):
        check_command(words)


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
def test_experiments_are_valid(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a SuperLink is that of ``kdfed deploy init``."""
    from kdfed.config import reading
    from simulations.deploy.settings import Plan

    if "superlink" in (values := yaml.safe_load(block)):
        Plan.model_validate(values)
        return

    # The tables of the pages are not here: whoever counts participants in them finds 20.
    counted = {"participants": 20}
    monkeypatch.setattr(reading, "prepare", lambda settings: None)
    monkeypatch.setattr(reading, "in_data", lambda settings, data: settings.model_copy(update=counted))
    build_experiment({**SMALLEST, **yaml.safe_load(block)})


@pytest.mark.parametrize("block", blocks("python", run=True))
def test_code_compiles_and_imports_what_exists(block: str) -> None:
    """``my_app`` is the app of docs/pre-consolidation.md, which tests/quickstart runs."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] != "my_app":
            module = importlib.import_module(node.module or "")
            assert [name.name for name in node.names if not hasattr(module, name.name)] == [] or (
                node.module == "__future__"
            )


# ----------------------------------------------------------------------------- CONTRIBUTING


class Addition(NamedTuple):
    """What a section of CONTRIBUTING says to do: a file, lines of a registry, a test, a page."""

    file: str
    code: str
    registry_file: str
    registry: str
    lines: tuple[str, str]
    test: str
    test_code: str
    page: str

    def apply(self, root: Path) -> None:
        """Do it to a copy of the repository, and nothing else."""
        for name, text in ((self.file, self.code), (self.test, self.test_code)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            assert not (root / name).exists()
            (root / name).write_text(text, encoding="utf-8")
        found = (root / self.registry_file).read_text(encoding="utf-8").splitlines()
        start = next(place for place, line in enumerate(found) if line.startswith(f"{self.registry}: "))
        first = next(place for place in range(start, len(found)) if re.match(r'\s+"[^"]+": ', found[place]))
        top = next(place for place, line in enumerate(found) if line.startswith("from kdfed."))
        found.insert(first, self.lines[1])
        found.insert(top, self.lines[0])
        (root / self.registry_file).write_text("\n".join(found) + "\n", encoding="utf-8")


def additions() -> Iterator[Addition]:
    """Yield what the sections of CONTRIBUTING say."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for section in re.findall(
        r"^## Add an? (?!thing of a family).*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE
    ):
        steps = re.split(r"^\d\. ", section, flags=re.MULTILINE)[1:]
        files = [re.match(r"`([^`]+)`", step) for step in steps]
        file, registry_file, test, page = (match[1] for match in files if match)
        blocks = [re.findall(r"^   ```\w+\n(.*?)^   ```", step, re.DOTALL | re.MULTILINE) for step in steps]
        code = "\n\n".join(textwrap.dedent(block) for block in blocks[0])
        if linked := re.search(r"the file of \[the page\]\(docs/own/([\w-]+)\.md\)", steps[0]):
            files_of_page = read_page(linked[1]).files
            (theirs,) = (name for name in files_of_page if name.endswith(".py"))
            code = files_of_page[theirs] + code
        registry = re.search(r"one line in `(\w+)`", steps[1])
        assert registry is not None
        lines = tuple(line.removeprefix("+") for line in textwrap.dedent(blocks[1][0]).splitlines())
        assert len(lines) == 2
        assert [len(found) for found in blocks[2:]] == [1, 0]
        yield Addition(
            file, code, registry_file, registry[1], lines, test, textwrap.dedent(blocks[2][0]), page
        )


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository to which every section of CONTRIBUTING was applied."""
    root = tmp_path_factory.mktemp("enlarged")
    unwanted = shutil.ignore_patterns("__pycache__")
    for package in ("kdfed", "strategies", "clients", "simulations", "docs"):
        shutil.copytree(ROOT / package, root / package, ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", root)
    for addition in additions():
        addition.apply(root)
    return root


def python(root: Path, *words: str) -> str:
    """Run Python in a copy of the repository; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_contributing_has_a_section_for_every_family() -> None:
    from kdfed.data.sources import SOURCES
    from kdfed.models import MODELS
    from simulations.experiments import FAMILIES

    found = list(additions())
    registries = [
        getattr(
            importlib.import_module(
                one.registry_file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            ),
            one.registry,
        )
        for one in found
    ]
    assert {id(registry) for registry in registries} == {id(one) for one in (*FAMILIES, SOURCES, MODELS)}
    for one in found:
        assert Path(one.test) == Path("tests", *Path(one.file).parent.parts, f"test_{Path(one.file).name}")
        assert (ROOT / one.page).parent.is_dir()


@pytest.mark.slow
def test_what_contributing_adds_is_listed_documented_and_runs(enlarged: Path) -> None:
    """By the names of the registries, in one experiment; the data source, without images, in another."""
    (enlarged / "all.yaml").write_text(
        """
name: all
data: {source: digits, limit: 600}
partition: {kind: striped, width: 30, participants: 4}
model: {name: separable, options: {width: 4}}
local: {mode: smoothed, smoothing: 0.2}
teachers: {epochs: 1}
consolidation:
  {method: reverse, forward: 0.1, ensemble: trimmed-mean, trimmed: 0.3, transfer: mixed, pairs: 1}
server: {strategy: fedavg-decay, decay: 0.1}
rounds: {horizon: 1}
arms: {all: {start: consolidated}}
"""
    )
    (enlarged / "tumours.yaml").write_text(
        "{name: tumours, data: {source: tumours}, partition: {kind: striped}, model: {name: mlp}, "
        "rounds: {horizon: 0}, arms: {cold: {start: random}}}"
    )
    listed = python(
        enlarged,
        "-c",
        "import runpy, kdfed; from simulations.cli import main; print(kdfed.__file__); main(['list'])\n"
        "for name in ('all', 'tumours'):\n"
        "    assert main(['run', f'{name}.yaml', '--engine', 'inprocess']) == 0\n"
        "runpy.run_path('docs/generate_reference.py', run_name='__main__')",
    )
    assert listed.splitlines()[0] == str(enlarged / "kdfed" / "__init__.py")
    reference = (enlarged / "docs" / "reference.md").read_text(encoding="utf-8")
    names = [one.lines[1].split('"')[1] for one in additions()]
    assert len(names) == len(list(additions()))
    for name in names:
        assert re.search(rf"^\s*{name} ", listed, re.MULTILINE)
        assert f": {name}`" in reference or name in ("tumours", "separable")
    assert (enlarged / "runs" / "all" / "summary.json").exists()


@pytest.mark.slow
def test_tests_of_contributing_pass(enlarged: Path) -> None:
    files = [one.test for one in additions()]
    passed = python(enlarged, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    assert re.search(r"^1[0-9] passed", passed, re.MULTILINE)


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


def test_every_page_is_in_the_navigation_once() -> None:
    """Pages of a folder that ends in ``/*`` are there without being named."""
    from runpy import run_path

    hook, docs = run_path(str(ROOT / "docs/navigation.py")), ROOT / "docs"
    config = yaml.safe_load(
        (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2].join(["nav:", ""])
    )
    nav = hook["on_config"]({"nav": config["nav"], "docs_dir": str(docs)})["nav"]
    pages = sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))
    assert sorted(hook["_pages"](nav)) == pages
    assert "methods/vanilla.md" not in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
