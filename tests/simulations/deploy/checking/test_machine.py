"""The machine is judged by what a device needs."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from datetime import UTC, datetime, timedelta

import pytest

from simulations.deploy.checking import machine

NOW = datetime(2026, 5, 1, tzinfo=UTC)
HERE = {"kdfed": "0.1.0", "flwr": "1.42.0", "torch": "2.9.0+cpu"}


@pytest.fixture
def installed(monkeypatch):
    """Return a function that says what is installed."""

    def say(**versions):
        monkeypatch.setattr(machine, "version", {**HERE, **versions}.__getitem__)

    return say


def levels(expected):
    return {finding.what: finding.level for finding in machine.check_versions(expected)}


def test_a_system_of_32_bits_is_told_what_to_install(monkeypatch):
    assert machine.check_processor().level == "fine"
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    found = machine.check_processor()
    assert found.level == "wrong"
    assert "Raspberry Pi OS, 64-bit" in found.text


@pytest.mark.parametrize(
    ("here", "level"),
    [
        ({}, "fine"),
        ({"torch": "2.9.0+cu130"}, "fine"),
        ({"torch": "2.8.0"}, "note"),
        ({"torch": "3.0.0"}, "wrong"),
        ({"flwr": "1.42.7"}, "fine"),
        ({"flwr": "1.41.0"}, "wrong"),
        ({"flwr": "1.30.0"}, "wrong"),
        ({"kdfed": "0.2.0"}, "wrong"),
    ],
)
def test_versions_are_compared_with_the_deployments(installed, here, level):
    installed(**here)
    found = levels(HERE)
    changed = next(iter(here), "kdfed")
    assert found == {**dict.fromkeys(HERE, "fine"), changed: level}


def test_a_flower_that_kdfed_does_not_know_is_wrong_even_if_the_deployment_has_it(installed):
    installed(flwr="9.9.0")
    (found,) = (one for one in machine.check_versions({"flwr": "9.9.0"}))
    assert found.level == "wrong"
    assert "which this kdfed knows, got 9.9.0" in found.text


def test_a_package_that_is_missing_is_wrong():
    (found,) = machine.check_versions({"no-such-package-of-anybody": "1.0"})
    assert found.level == "wrong"
    assert "pip install no-such-package-of-anybody==1.0" in found.text


# ----------------------------------------------------------------------------- PyTorch

PRINTED = '{"version": "2.9.0", "gpus": 1, "mps": false, "sum": 3.0}\n'


@pytest.fixture
def probed(monkeypatch):
    """Return a function that says how importing PyTorch ended."""

    def say(code=0, stdout="", stderr=""):
        monkeypatch.setattr(machine, "_probe", lambda: subprocess.CompletedProcess([], code, stdout, stderr))

    return say


@pytest.mark.parametrize("device", [None, "auto", "cpu", "cuda", "cuda:0"])
def test_a_device_that_is_there_is_fine(probed, device):
    probed(stdout=PRINTED)
    assert [one.level for one in machine.check_torch(device)] == ["fine"]


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_a_device_that_is_not_there_is_wrong(probed, device):
    probed(stdout=PRINTED)
    _, found = machine.check_torch(device)
    assert found.level == "wrong"
    assert f"expected one of cpu, cuda:0 or auto, got '{device}'" in found.text


@pytest.mark.parametrize(
    ("code", "stderr", "said"),
    [
        (-4, "", "SIGILL ended it: its wheel is for another processor"),
        (-9, "", "SIGKILL ended it: most likely for want of memory"),
        (-11, "", "SIGSEGV ended it: install it anew"),
        (1, "Traceback\nOSError: libgomp.so.1: cannot open", "OSError: libgomp.so.1: cannot open"),
        (1, "", "no reason was given"),
    ],
)
def test_a_pytorch_that_does_not_import_is_told_with_why(probed, code, stderr, said):
    probed(code, stderr=stderr)
    (found,) = machine.check_torch("cpu")
    assert found.level == "wrong"
    assert said in found.text


def test_pytorch_is_really_imported_in_another_process():
    machine._probe.cache_clear()
    assert [one.level for one in machine.check_torch("cpu")] == ["fine"]


# ----------------------------------------------------------------------------- clock, memory, disk


def test_a_clock_before_the_deployment_was_made_is_wrong():
    assert machine.check_clock(NOW, NOW + timedelta(days=1)).level == "fine"
    found = machine.check_clock(NOW, datetime(1970, 1, 1, tzinfo=UTC))
    assert found.level == "wrong"
    assert "timedatectl set-ntp true" in found.text


@pytest.mark.parametrize(
    ("mebibytes", "running", "level"),
    [
        (4000, False, "fine"),
        (700, False, "note"),
        (300, False, "wrong"),
        (300, True, "note"),
        (None, False, "note"),
    ],
)
def test_memory_is_enough_scarce_or_too_little(monkeypatch, mebibytes, running, level):
    free = None if mebibytes is None else mebibytes * machine.MEBIBYTE
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    assert machine.check_memory(running=running).level == level


def test_this_systems_memory_is_read():
    free = machine.free_memory()
    assert free is None or 0 < free < 2**50


@pytest.mark.parametrize(("mebibytes", "level"), [(5000, "fine"), (500, "note"), (50, "wrong")])
def test_a_disk_is_looked_at_once_also_where_the_folder_is_not_made_yet(
    tmp_path, monkeypatch, mebibytes, level
):
    usage = namedtuple("usage", "free")(mebibytes * machine.MEBIBYTE)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    assert [one.level for one in machine.check_disk([tmp_path / "a" / "b", tmp_path])] == [level]
