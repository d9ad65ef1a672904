"""What the READMEs of a deployment say to run exists, and Flower reads the connection."""

from __future__ import annotations

import re

import pytest

from tests.simulations.deploy.conftest import LOCAL, PLAN
from tests.test_docs import check_command, commands


def shell(text: str) -> list[list[str]]:
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [words for block in blocks for words in commands(block)]


@pytest.mark.parametrize(("values", "insecure"), [(PLAN, False), (LOCAL, False), (LOCAL, True)])
def test_commands_in_the_readmes_exist(deployed, values, insecure):
    folder = deployed(values, insecure=insecure)
    pages = [folder / "README.md", folder / "devices" / "north" / "README.md"]
    found = [words for page in pages for words in shell(page.read_text(encoding="utf-8"))]
    assert len(found) > 5
    for words in found:
        check_command(words)


def test_files_that_the_readme_names_are_there(deployed):
    folder = deployed()
    text = (folder / "README.md").read_text(encoding="utf-8").replace("NAME", "north")
    named = set(re.findall(r"`((?:authority|superlink|devices|wheels|operator)/[\w./]*)`", text))
    assert {"authority/ca.key", "superlink/server.key", "devices/north/key"} <= named
    assert [name for name in named if not (folder / name).exists()] == []
