from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdfed import named
from kdfed.data import load_source
from kdfed.errors import ConfigError, DataError
from kdfed.models import build_model, check_model
from kdfed.named import NamedError, blamed, is_named, load_named, search_in, signature_of
from kdfed.settings import DataSettings, ModelSettings

Write = object


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes a module; its file name is its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def to(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return to


BROKEN = [
    ("raises", "x = 1\n\n1 / 0\n", r"ZeroDivisionError: division by zero \(.*{name}\.py, line 3\)"),
    ("syntax", "x = 1\ndef net(:\n", r"SyntaxError: invalid syntax \(.*{name}\.py, line 2\)"),
    ("indented", "x = 1\n  y = 2\n", r"IndentationError: .*{name}\.py, line 2\)"),
    (
        "exits",
        "import sys\nsys.exit(3)\n",
        r"SystemExit: 3; .*must not end the program \(.*{name}\.py, line 2\)",
    ),
    (
        "parses",
        "import argparse\n\nargparse.ArgumentParser().parse_args(['--no'])\n",
        r"{name}\.py, line 3\)",
    ),
    ("base", "class E(BaseException): pass\nraise E('no')\n", r"E: no \(.*{name}\.py, line 2\)"),
    ("deep", "def f(): raise ValueError('a' * 9**5)\nf()\n", r"characters\) \(.*{name}\.py, line 1\)"),
    ("lacks", "import no_such_thing\n", r"ModuleNotFoundError: .*no_such_thing.*{name}\.py, line 1\)"),
]


@pytest.mark.parametrize(("name", "text", "message"), BROKEN)
def test_a_module_that_cannot_be_imported_is_one_mistake_with_file_and_line(
    write, capsys, name: str, text: str, message: str
) -> None:
    chosen = f"{write(f'{name}_user', text)}:make"
    message = message.format(name=f"{name}_user")
    found = check_model(ModelSettings(name=chosen))
    assert found is not None
    assert re.search(message, found)
    with pytest.raises(DataError, match=message) as caught:
        load_source(DataSettings(source=chosen))
    assert max(len(found), len(str(caught.value))) < 1200


def test_a_mistake_in_a_module_beside_it_is_told_where_it_is(write) -> None:
    write("beside_helper", "x = 1\nraise ValueError('no')\n")
    with pytest.raises(NamedError, match=r"ValueError: no \(.*beside_helper\.py, line 2\)"):
        load_named(f"{write('beside_user', 'import beside_helper')}:make")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class E(Exception):\n    def __str__(self): return 1 / 0\nraise E", "raises ZeroDivisionError"),
        ("raise GeneratorExit", "GeneratorExit"),
    ],
)
def test_whatever_a_module_raises_can_be_told(write, text: str, message: str) -> None:
    name = f"telling_user_{len(text)}"
    with pytest.raises(NamedError, match=rf"{message}.*{name}\.py, line"):
        load_named(f"{write(name, text)}:make")


def test_ctrl_c_while_a_module_is_imported_stays_ctrl_c(write) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_named(f"{write('interrupted_user', 'raise KeyboardInterrupt')}:make")


def test_an_exit_that_a_signal_asked_for_is_nobodys_mistake() -> None:
    with pytest.raises(SystemExit), blamed("my:net", "expected"):
        raise SystemExit(143)


@pytest.mark.parametrize(
    "name", ["a:b:c", ":x", "x:", "", ":", ".:x", "..a:x", ".a:x", "a.:x", "a b:x", "a:x()", "a:x.y", "a/b:x"]
)
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(
        NamedError, match=re.escape(f"expected an importable package.module:name, got {name!r}")
    ):
        load_named(name)


@pytest.mark.parametrize("name", ["math:pi", "os:environ"])
def test_what_cannot_be_called_is_refused(name: str) -> None:
    with pytest.raises(NamedError, match="to be callable, got a"):
        load_named(name)


@pytest.mark.parametrize("name", ["builtins:int", "time:sleep", "no_signature_user:Net"])
def test_a_callable_without_a_signature_is_one_mistake(write, name: str) -> None:
    write("no_signature_user", "class Net:\n    __signature__ = 3\n")
    message = "to have a signature that can be read; wrap it in a function"
    found = check_model(ModelSettings(name=name))
    assert found is not None
    assert message in found
    with pytest.raises(NamedError, match=message):
        signature_of(name, load_named(name))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("def net(input_shape): pass", {}, "too many positional arguments"),
        ("def net(input_shape, classes, width): pass", {}, "missing a required argument: 'width'"),
    ],
)
def test_a_callable_that_cannot_be_called_so_is_refused_without_data(write, text, options, message) -> None:
    found = check_model(ModelSettings(name=f"{write(f'called{len(text)}_user', text)}:net", options=options))
    assert found is not None
    assert message in found


NETS = """
import sys
from torch import nn

def exits(input_shape, classes):
    sys.exit("no")

def raises(input_shape, classes):
    raise RuntimeError("no weights")

def number(input_shape, classes):
    return 3

class Forward(nn.Module):
    def __init__(self, input_shape, classes):
        super().__init__()
        self.linear = nn.Linear(3, classes)

    def forward(self, inputs):
        return self.linear(inputs)
"""


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("exits", r"SystemExit: no; .*nets_user\.py, line 6\)"),
        ("raises", r"RuntimeError: no weights \(.*nets_user\.py, line 9\)"),
        ("number", r"expected a torch\.nn\.Module, got 3"),
        ("Forward", r"RuntimeError: .*cannot be multiplied.*nets_user\.py, line 20\)"),
    ],
)
def test_a_model_that_cannot_be_built_or_run_tells_where(write, net: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(ModelSettings(name=f"{write('nets_user', NETS)}:{net}"), (4,), 2, seed=0)
    assert len(caught.value.mistakes) == 1
    assert "\n" not in caught.value.mistakes[0].message


def test_a_source_that_ends_the_program_is_one_mistake(write) -> None:
    name = write("ending_user", "import sys\ndef make(settings):\n    sys.exit()\n")
    with pytest.raises(DataError, match=r"SystemExit.*ending_user\.py, line 3\)"):
        load_source(DataSettings(source=f"{name}:make"))


# ----------------------------------------------------------------------------- modules beside an experiment


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that is searched; what was found in it is forgotten afterwards."""
    monkeypatch.setattr(named, "_FOLDERS", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    known, folder = set(sys.modules), tmp_path / "beside"
    folder.mkdir()
    search_in(folder)
    yield folder
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_modules_and_packages_of_a_folder_are_found_behind_everything_that_is_installed(searched) -> None:
    (searched / "beside_module.py").write_text("def make(): return 1")
    (searched / "beside_package").mkdir()
    (searched / "beside_package/__init__.py").write_text("")
    (searched / "beside_package/inner.py").write_text("def make(): return 2")
    assert load_named("beside_module:make")() == 1
    assert load_named("beside_package.inner:make")() == 2
    assert sys.path[-1] == str(searched)


def test_a_folder_is_searched_once_and_by_its_absolute_path(searched, monkeypatch) -> None:
    monkeypatch.chdir(searched.parent)
    before = list(sys.path)
    search_in(Path("beside"))
    assert sys.path == before
    assert [searched] == named._FOLDERS


@pytest.mark.parametrize(
    ("name", "other"), [("json", r"json.__init__\.py"), ("sys", "a module of Python itself")]
)
def test_a_file_that_is_hidden_by_an_installed_module_is_refused_with_both(searched, name, other) -> None:
    (searched / f"{name}.py").write_text("def make(): return 1")
    beside = re.escape(str(searched / f"{name}.py"))
    message = rf"expected '{name}:make' to be that of {beside}, but the name '{name}' stands for .*{other}"
    with pytest.raises(NamedError, match=f"{message}, which is found first; rename the file"):
        load_named(f"{name}:make")


def test_a_file_that_is_hidden_by_a_module_of_another_searched_folder_is_refused(searched, tmp_path) -> None:
    """Two experiments of one process, each with a module of this name beside it."""
    other = tmp_path / "other"
    other.mkdir()
    for folder, number in ((searched, 1), (other, 2)):
        (folder / "twice_named.py").write_text(f"def make(): return {number}")
    assert load_named("twice_named:make")() == 1
    search_in(other)
    other_message = r"other.twice_named\.py, but the name .*beside.twice_named\.py"
    with pytest.raises(NamedError, match=other_message):
        load_named("twice_named:make")
    search_in(searched)
    assert load_named("twice_named:make")() == 1


def test_a_name_that_is_installed_and_not_beside_is_found(searched) -> None:
    assert load_named("json:dumps")([1]) == "[1]"


@pytest.mark.parametrize(
    ("name", "answer"), [("a:b", True), ("a.b:c", True), ("cnn", False), ("hf:a/b", False), ("a:b:c", False)]
)
def test_the_form_of_a_users_name(name: str, answer: bool) -> None:
    assert is_named(name) is answer
