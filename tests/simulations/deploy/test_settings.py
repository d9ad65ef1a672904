"""The participants' file: hosts, addresses, ports and node-configs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from clients.node_config import NodeConfig
from simulations.deploy.settings import (
    ParticipantSettings,
    Plan,
    SuperLinkSettings,
    is_loopback,
)
from tests.simulations.deploy.conftest import PLAN


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_hosts_are_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "localhost.example.org", "fl.example.org", "2001:db8::1"])
def test_other_hosts_are_not(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "http://x",
        "x:8000",
        "1.2.3",
        "a b",
        "-x",
        "x-",
        "x..y",
        "0.0.0.0",
        "::",
        "256.1.1.1",
        "a" * 64,
        "ä",
    ],
)
def test_what_is_no_host_is_refused(host):
    with pytest.raises(ValidationError):
        SuperLinkSettings(hosts=(host,))


def test_a_superlink_for_this_machine_listens_on_loopback_and_another_everywhere():
    assert SuperLinkSettings(hosts=("localhost",)).bound_to == "127.0.0.1"
    assert SuperLinkSettings(hosts=("::1",)).bound_to == "::1"
    assert SuperLinkSettings(hosts=("fl.example.org",)).bound_to == "0.0.0.0"
    assert SuperLinkSettings(hosts=("fl.example.org",), listen="10.0.0.4").bound_to == "10.0.0.4"


def test_the_certificate_names_the_hosts_and_where_the_superlink_reaches_itself():
    assert SuperLinkSettings(hosts=("fl.example.org",), listen="10.0.0.4").certified == (
        "fl.example.org", "10.0.0.4", "localhost", "127.0.0.1", "::1",
    )  # fmt: skip


def test_devices_use_the_first_host():
    assert SuperLinkSettings(hosts=("2001:db8::1", "x"), port=9).address == "[2001:db8::1]:9"


@pytest.mark.parametrize(
    "data", ["folder:images", "csv:", "zip:/a", "mnist5k", "os", "npz", "folder:~/x", "a:b.c"]
)
def test_data_are_on_the_device_under_a_whole_path(data):
    with pytest.raises(ValidationError):
        ParticipantSettings(name="north", data=data)


def test_a_participant_becomes_a_node_config():
    participant = ParticipantSettings(
        name="north", data="my_data:load", device="cuda:1", threads=3, store="/s", teacher="/t.pt",
        allow=("a.b:c", "d:e"),
    )  # fmt: skip
    assert participant.node_config == NodeConfig(
        participant="north", data="my_data:load", device="cuda:1", threads=3, store="/s", teacher="/t.pt",
        allow="a.b:c d:e",
    )  # fmt: skip
    assert participant.node_config.allowed == {"a.b:c", "d:e"}


@pytest.mark.parametrize("name", ["north", "a", "A.b-c_9", "x" * 63])
def test_every_name_of_a_participant_is_one_of_a_node_config(name):
    assert ParticipantSettings(name=name, data="m:f").node_config.participant == name


def test_ports_that_are_not_given_are_free_ones():
    rows = [{"name": f"p{n}", "data": "m:f"} for n in range(3)]
    rows[1]["port"] = 9095
    plan = Plan.model_validate({**PLAN, "superlink": {"hosts": ["x"], "port": 9094}, "participants": rows})
    assert [one.port for one in plan.with_ports([9096]).participants] == [9097, 9095, 9098]


@pytest.mark.parametrize(
    "changes", [{"store": "/x\nExecStart=/y"}, {"teacher": "/x\ty"}, {"data": "npz:/x\n"}]
)
def test_no_path_ends_a_line_of_what_is_written(changes):
    with pytest.raises(ValueError, match="without line breaks"):
        ParticipantSettings.model_validate({"name": "north", "data": "folder:/srv/images", **changes})
