"""Every device is registered once, and its node id kept."""

from __future__ import annotations

import json

import pytest

from kdfed.errors import ConfigError, RunError
from simulations.deploy import registering
from simulations.deploy.flower import KeyInUseError, Node
from simulations.deploy.registering import register, registered
from tests.simulations.deploy.conftest import LOCAL


class SuperLink:
    """Registers keys; ``refuse`` names participants whose keys it has already."""

    def __init__(self):
        self.listed, self.calls, self.refuse = [], [], {}

    def nodes(self):
        return self.listed

    def register(self, key):
        name = key.parent.name
        self.calls.append(name)
        if name in self.refuse:
            raise self.refuse[name]
        self.listed.append(Node(str(100 + len(self.calls)), "registered", ""))
        return self.listed[-1].node_id


@pytest.fixture
def superlink(monkeypatch):
    link = SuperLink()
    monkeypatch.setattr(registering, "flower_of", lambda folder: link)
    return link


def test_everybody_is_registered_once(deployed, superlink):
    folder, told = deployed(), []
    done = register(folder, lambda *words: told.append(words))
    assert done == (("north", "south"), (), ())
    assert told == [("north", "101"), ("south", "102")]
    assert registered(folder) == {"north": "101", "south": "102"}
    assert register(folder, lambda *_: None) == ((), ("north", "south"), ())
    assert superlink.calls == ["north", "south"]


def test_a_superlink_that_forgot_gets_the_keys_again(deployed, superlink):
    folder = deployed()
    register(folder, lambda *_: None)
    superlink.listed = [Node("101", "unregistered", "")]
    assert register(folder, lambda *_: None).now == ("north", "south")


def test_what_was_registered_by_hand_does_not_stop_the_others(deployed, superlink):
    folder = deployed()
    superlink.refuse = {"north": KeyInUseError("in use")}
    assert register(folder, lambda *_: None) == (("south",), (), ("north",))
    assert registered(folder) == {"south": "102"}


def test_what_was_registered_is_kept_when_the_superlink_goes(deployed, superlink):
    folder = deployed()
    superlink.refuse = {"south": RunError("gone")}
    with pytest.raises(RunError):
        register(folder, lambda *_: None)
    assert json.loads((folder / "operator" / "nodes.json").read_text()) == {"north": "101"}


def test_a_deployment_without_keys_registers_nobody(deployed, superlink):
    with pytest.raises(ConfigError, match="nothing is registered"):
        register(deployed(LOCAL, insecure=True), lambda *_: None)
    assert superlink.calls == []
