"""A whole deployment, a device's folder and the SuperLink's are checked, and everything is told at once."""

from __future__ import annotations

import shutil
import socket
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from kdfed.errors import ConfigError
from simulations.deploy.checking import folders, machine
from simulations.deploy.checking.findings import fine
from simulations.deploy.checking.folders import check
from simulations.deploy.credentials import new_authority, new_device_key
from simulations.deploy.reading import to_yaml
from tests.simulations.deploy.conftest import LOCAL


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """PyTorch is not imported anew for each test, and no name server is asked."""
    monkeypatch.setattr(folders, "check_torch", lambda device: [fine("torch imports", str(device))])
    monkeypatch.setattr(machine, "free_memory", lambda: 2**33)
    found = socket.gaierror(-2, "Name or service not known")

    def look_up(address, *_):
        if not address[0].startswith("127."):
            raise found
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", look_up)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "images" / "zero").mkdir(parents=True)
    (tmp_path / "images" / "zero" / "a.png").write_bytes(b"x")
    return f"folder:{tmp_path}/images"


@pytest.fixture
def local(deployed, data):
    return deployed(LOCAL, participants=[{"name": name, "data": data} for name in ("north", "south")])


def problems(folder, now=None):
    return {one.what: one.text for one in check(folder, now) if one.level == "wrong"}


def test_what_was_just_written_is_fine(local):
    findings = check(local)
    assert [str(one) for one in findings if one.level == "wrong"] == []
    assert len(findings) > 25


def test_of_devices_elsewhere_only_the_folders_are_checked(deployed):
    found = {one.what for one in check(deployed())}
    assert "north: key" in found
    assert "north: data" not in found
    assert "north: torch imports" not in found


def test_everything_that_is_wrong_is_told_at_once(local):
    (local / "authority" / "ca.key").chmod(0o644)
    (local / "superlink" / "server.key").chmod(0o640)
    north, south = local / "devices" / "north", local / "devices" / "south"
    (north / "ca.crt").write_bytes(new_authority().public)
    (north / "key.pub").write_bytes(new_device_key("x").public)
    values = yaml.safe_load((south / "node.yaml").read_text())
    values["node-config"] = {"participant": "west", "data": "folder:/not/there", "store": "/not/there"}
    (south / "node.yaml").write_text(to_yaml(values))
    assert set(problems(local)) == {
        "the authority's key",
        "the SuperLink's key",
        "north: ca.crt",
        "north: key.pub",
        "south: node.yaml",
        "south: data",
        "south: store",
    }


def test_a_missing_device_is_told_and_the_rest_is_checked(local):
    shutil.rmtree(local / "devices" / "north")
    (local / "devices" / "south" / "key").chmod(0o644)
    found = problems(local)
    assert set(found) == {"north", "south: key"}
    assert "restore the folder from a copy" in found["north"]


def test_a_store_that_the_unit_makes_is_a_note(local):
    device = local / "devices" / "north"
    values = yaml.safe_load((device / "node.yaml").read_text())
    values["node-config"]["store"] = "/not/there"
    (device / "node.yaml").write_text(to_yaml(values))
    (found,) = [one for one in check(device) if one.what == "store"]
    assert (found.level, "got nothing there; make it" in found.text) == ("wrong", True)
    unit = device / "kdfed-north.service"
    unit.write_text(unit.read_text() + 'ExecStartPre=+/bin/mkdir "/not/there"\n')
    (found,) = [one for one in check(device) if one.what == "store"]
    assert (found.level, found.text) == (
        "note",
        "/not/there is not there yet: kdfed-north.service makes it when it starts",
    )


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (datetime.now(UTC) + timedelta(days=900), {"the SuperLink's certificate"}),
        (
            datetime.now(UTC) + timedelta(days=4000),
            {"the authority's certificate", "the SuperLink's certificate", "north: ca.crt", "south: ca.crt"},
        ),
    ],
)
def test_certificates_expire(local, now, said):
    found = problems(local, now)
    assert set(found) == said
    assert "kdfed deploy renew" in found["the SuperLink's certificate"]


def test_a_clock_that_was_never_set_is_told(local):
    found = problems(local / "devices" / "north", datetime(1970, 1, 1, tzinfo=UTC))
    assert "set this machine's clock" in found["ca.crt"]
    assert "timedatectl" in found["clock"]


def test_a_device_must_reach_the_superlink(local, deployed):
    assert set(problems(local / "devices" / "north")) == {"the SuperLink"}


def test_the_superlinks_folder_is_checked_on_its_machine(local):
    superlink = local / "superlink"
    assert problems(superlink) == {}
    assert {"the SuperLink's key", "port 42101", "disk"} <= {one.what for one in check(superlink)}
    (superlink / "server.crt").write_bytes((local / "superlink" / "ca.crt").read_bytes())
    assert "the SuperLink's certificate" in problems(superlink)


def test_without_tls_another_machine_is_refused(deployed, data):
    rows = [{"name": "north", "data": data}]
    device = deployed(LOCAL, insecure=True, participants=rows) / "devices" / "north"
    assert set(problems(device)) == {"the SuperLink"}
    values = yaml.safe_load((device / "node.yaml").read_text())
    (device / "node.yaml").write_text(to_yaml({**values, "superlink": "fl.example.org:8000"}))
    assert "expected TLS and a key for fl.example.org" in problems(device)["TLS"]


def test_a_device_without_a_key_is_told(local):
    file = local / "devices" / "north" / "node.yaml"
    file.write_text(to_yaml({**yaml.safe_load(file.read_text()), "key": None}))
    assert "expected a key" in problems(local)["north: node.yaml"]


def test_every_mistake_in_a_node_file_is_a_finding(local):
    device = local / "devices" / "north"
    (device / "node.yaml").write_text(to_yaml({"superlink": "x", "node-config": {"data": "m:f"}}))
    found = [one for one in check(device) if one.level == "wrong"]
    assert [one.what for one in found] == ["node.yaml", "node.yaml"]
    assert {one.text.partition(":")[0] for one in found} == {"superlink", "node-config.participant"}


def test_another_folder_is_refused_and_half_a_deployment_is_named(tmp_path):
    with pytest.raises(ConfigError, match="expected a deployment"):
        check(tmp_path)
    (tmp_path / "devices").mkdir()
    with pytest.raises(
        ConfigError, match="does not write again: restore it from a copy, or move the folder away"
    ):
        check(tmp_path)


def test_a_folder_that_does_not_say_its_versions_is_a_note(local):
    (local / "devices" / "north" / "made.json").unlink()
    notes = {one.what for one in check(local / "devices" / "north") if one.level == "note"}
    assert "versions" in notes
