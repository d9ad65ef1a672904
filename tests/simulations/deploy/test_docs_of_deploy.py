"""The pages about deployments name the keys and files that there are."""

from __future__ import annotations

import re
from pathlib import Path

from kdfed.settings import kebab
from simulations.deploy.settings import ParticipantSettings, Plan, SuperLinkSettings

DOCS = Path(__file__).parents[3] / "docs" / "deploy"


def test_the_table_of_keys_is_that_of_the_file():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    table = text.partition("| key | meaning |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    told = {name.rpartition(".")[2] for cell in cells for name in re.findall(r"`([\w.-]+)`", cell)}
    models = (Plan, SuperLinkSettings, ParticipantSettings)
    keys = {kebab(name) for model in models for name in model.model_fields}
    assert told == keys - {"superlink", "participants"}


def test_what_the_pages_say_is_in_a_deployment_is_there(deployed):
    folder = deployed()
    names = set()
    for page in ("index.md", "security.md"):
        text = (DOCS / page).read_text(encoding="utf-8").replace("NAME", "north")
        names |= set(re.findall(r"`((?:authority|superlink|devices|wheels|operator)/[\w./]*)`", text))
    assert {"authority/ca.key", "superlink/server.key", "devices/north/key", "superlink/state/"} <= names
    assert {name for name in names if not (folder / name).exists()} == {"operator/nodes.json"}


def test_the_page_says_plainly_that_it_was_not_run():
    text = (DOCS / "raspberry-pi.md").read_text(encoding="utf-8")
    assert text.startswith("# Raspberry Pi\n\n**None of this was run on a Raspberry Pi.**")
