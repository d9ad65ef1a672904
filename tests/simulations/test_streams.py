"""The command's output is for people: nothing about it ends what the command does."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from simulations.cli import main
from simulations.savings import main as savings
from simulations.streams import Patient


@contextmanager
def printing_to(stream: io.TextIOWrapper | None, name: str = "stdout") -> Iterator[None]:
    """Replace a standard stream (a fixture cannot: pytest replaces it again before the test)."""
    before = getattr(sys, name)
    setattr(sys, name, stream)
    try:
        yield
        assert getattr(sys, name) is stream
    finally:
        setattr(sys, name, before)


@contextmanager
def narrow(encoding: str) -> Iterator[io.BytesIO]:
    """Print to an encoding that lacks most characters."""
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as stream, printing_to(stream):
        yield raw
        assert stream.errors == "strict"


@contextmanager
def unread() -> Iterator[None]:
    """Print to somebody who went away."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream, printing_to(stream):
        yield


@pytest.mark.slow
def test_every_command_prints_in_an_encoding_that_lacks_its_characters(experiment):
    run = ["run", str(experiment), "--engine", "inprocess", "--out", "mine"]
    partition = ["partition", str(experiment), "--out", "who.png"]
    with narrow("ascii") as raw:
        for words in (run, ["list"], partition, ["--help"], ["study", "--help"]):
            assert main(words) == 0
        assert savings(["mine"]) == 0
        shown = raw.getvalue().decode("ascii")
    for text in ("saved against cold", "cost to target", "dirichlet, 5 participants", "vanilla", "STUDY"):
        assert text in shown
    assert "| tiny | consolidated |" in shown


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift_jis", "utf-16"])
def test_any_encoding_will_do(encoding):
    with narrow(encoding) as raw:
        assert main(["--help"]) == main(["list"]) == 0
        assert "vanilla" in raw.getvalue().decode(encoding)


@pytest.mark.slow
def test_a_run_whose_reader_went_away_is_complete(experiment):
    with unread():
        assert main(["run", str(experiment), "--engine", "inprocess", "--out", "mine"]) == 0
    assert len((experiment.parent / "mine/rounds.jsonl").read_text().splitlines()) == 4
    assert json.loads((experiment.parent / "mine/summary.json").read_text())["runs"]
    assert (experiment.parent / "mine/report.html").exists()
    with unread():
        assert savings(["mine"]) == 0


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_is_closed_is_one_that_nobody_reads(tmp_path, name, capsys):
    with printing_to(None, name):
        assert main(["--help"]) == 0
        assert main(["report", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert ("error: " in shown.err, "error: " in shown.out) == (name == "stdout", False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_told_at_the_end(capsys):
    with open("/dev/full", "w") as full, printing_to(full):
        assert main(["list"]) == 1
    assert capsys.readouterr().err == "error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize(
    ("redirection", "code"), [("", 0), (">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), ("| true", 0)]
)
def test_a_process_ends_quietly_however_its_output_is_taken(redirection, code):
    program = "from simulations.cli import main; raise SystemExit(main(['--help']))"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {redirection}', sys.executable, program],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (code, "")


def test_a_stream_that_somebody_closed_is_not_missed():
    closed = io.StringIO()
    closed.close()
    stream = Patient(closed)
    assert stream.write("gone") == 4
    stream.flush()
    assert stream.failure is None
