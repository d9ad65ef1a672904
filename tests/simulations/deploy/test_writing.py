"""A deployment is written whole or not at all, and nothing that is there is written again."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509

from clients.device_folder import read_node_file
from kdfed.errors import ConfigError, RunFolderError
from simulations.cli import main
from simulations.deploy import writing
from simulations.deploy.credentials import new_authority
from simulations.deploy.layout import is_deployment
from simulations.deploy.reading import read_deployment, to_yaml
from simulations.deploy.settings import Plan
from simulations.deploy.writing import initialise, renew
from tests.simulations.deploy.conftest import LOCAL, PLAN

EAST = {"name": "east", "data": "csv:/srv/east.csv"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plan(**changes):
    return Plan.model_validate({**PLAN, **changes})


def test_secrets_are_the_owners_and_nothing_else_is_a_secret(deployed):
    folder = deployed()
    modes = {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in [folder, *folder.rglob("*")]
    }
    secrets = {"authority/ca.key", "superlink/server.key", "devices/north/key", "devices/south/key"}
    assert {name for name, mode in modes.items() if mode == 0o600} == secrets
    assert {mode for name, mode in modes.items() if (folder / name).is_dir()} == {0o700}
    private = {name for name, content in contents(folder).items() if b"PRIVATE KEY" in content}
    assert private == secrets


def test_a_devices_folder_holds_no_secret_of_another(deployed):
    folder = deployed()
    found = contents(folder)
    keys = [found[f"devices/{name}/key"] for name in ("north", "south")]
    assert keys[0] != keys[1]
    for name, content in found.items():
        if not name.endswith("key"):
            assert all(key not in content for key in keys)
    assert "ca.key" not in {path.name for path in (folder / "superlink").iterdir()}


def test_without_tls_there_is_no_key_and_no_certificate(deployed):
    folder = deployed(LOCAL, insecure=True)
    names = {path.name for path in folder.rglob("*")}
    assert not names & {"authority", "ca.crt", "ca.key", "server.crt", "server.key", "key", "key.pub"}
    device = read_node_file(folder / "devices" / "north")
    assert device.insecure
    assert device.key is None
    assert device.root_certificates is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space")])
@pytest.mark.parametrize("step", ["_write_device", "_write_top", "new_authority"])
def test_an_interrupted_init_leaves_nothing(tmp_path, monkeypatch, step, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(writing, step, fail)
    with pytest.raises((KeyboardInterrupt, RunFolderError)):
        initialise(tmp_path / "deployment", plan())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_init_leaves_no_folder_of_that_name(tmp_path):
    """Not even kill -9 makes half a deployment: what is left has another name, and is the owner's alone."""
    code = (
        "import sys, time\n"
        "from simulations.deploy import writing\n"
        "from simulations.deploy.settings import Plan\n"
        "from pathlib import Path\n"
        "writing._write_top = lambda *_: (print('there', flush=True), time.sleep(60))\n"
        f"writing.initialise(Path(sys.argv[1]), Plan.model_validate({PLAN!r}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "deployment")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".deployment.")
    assert stat.S_IMODE(left.stat().st_mode) == 0o700
    assert not is_deployment(left)
    initialise(tmp_path / "deployment", plan())
    assert is_deployment(tmp_path / "deployment")


@pytest.mark.parametrize("kind", ["empty", "full", "file", "dangling link"])
def test_what_is_no_deployment_is_left_alone(tmp_path, kind):
    place = tmp_path / "deployment"
    if kind == "file":
        place.touch()
    elif kind == "dangling link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.mkdir()
        if kind == "full":
            (place / "thesis.tex").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunFolderError, match="expected a place where nothing is, or a deployment"):
        initialise(place, plan())
    assert sorted(tmp_path.rglob("*")) == before


def test_folders_above_it_are_made(tmp_path):
    initialise(tmp_path / "a" / "b", plan())
    assert is_deployment(tmp_path / "a" / "b")


# ----------------------------------------------------------------------------- a new participant


def test_a_new_participant_is_added_and_everything_else_kept(deployed):
    folder = deployed()
    before = contents(folder)
    written = initialise(folder, plan(participants=[*PLAN["participants"], EAST]))
    assert written == (("east",), ("north", "south"))
    after = contents(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"README.md", "compose.yaml", "deployment.yaml"}
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"east"}
    assert [one.port for one in read_deployment(folder).plan.participants] == [9094, 9095, 9096]
    assert after["devices/east/ca.crt"] == before["superlink/ca.crt"]


def test_a_file_with_the_new_ones_alone_will_do(deployed):
    folder = deployed()
    assert initialise(folder, plan(participants=[EAST])) == (("east",), ("north", "south"))
    assert [one.name for one in read_deployment(folder).plan.participants] == ["north", "south", "east"]


def test_the_same_file_again_changes_nothing(deployed):
    folder = deployed()
    before = contents(folder)
    assert initialise(folder, plan()) == ((), ("north", "south"))
    assert contents(folder) == before


def test_what_is_there_is_not_changed_and_every_change_is_told(deployed):
    folder = deployed()
    before = contents(folder)
    north = {**PLAN["participants"][0], "threads": 4}
    taken = {**EAST, "port": 9095}
    other = plan(
        superlink={"hosts": ["elsewhere.org"], "port": 42100},
        participants=[north, taken, {"name": "South", "data": "m:f"}],
        user="somebody",
        **{"certificate-days": 5},
    )
    with pytest.raises(ConfigError) as error:
        initialise(folder, other, insecure=True)
    assert [mistake.key for mistake in error.value.mistakes] == [
        "--insecure",
        "superlink",
        "user",
        "certificate-days",
        "participants.0.threads",
        "participants.1.port",
        "participants.2.name",
    ]
    assert contents(folder) == before


def test_an_interrupted_addition_is_finished_by_the_next(deployed, monkeypatch):
    folder = deployed()
    grown = plan(participants=[*PLAN["participants"], EAST])
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_top", lambda *_: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5))
        with pytest.raises(KeyboardInterrupt):
            initialise(folder, grown)
    key = (folder / "devices" / "east" / "key").read_bytes()
    assert [one.name for one in read_deployment(folder).plan.participants] == ["north", "south"]
    assert initialise(folder, grown) == ((), ("north", "south", "east"))
    assert (folder / "devices" / "east" / "key").read_bytes() == key
    assert [one.name for one in read_deployment(folder).plan.participants] == ["north", "south", "east"]


def test_a_strange_folder_with_a_new_participants_name_is_left_alone(deployed):
    folder = deployed()
    (folder / "devices" / "east").mkdir()
    with pytest.raises(RunFolderError, match="expected no folder of 'east', who is new"):
        initialise(folder, plan(participants=[EAST]))
    assert list((folder / "devices" / "east").iterdir()) == []


# ----------------------------------------------------------------------------- another certificate


def test_another_certificate_has_the_same_key_and_another_number(deployed):
    folder = deployed()
    before = contents(folder)
    old = x509.load_pem_x509_certificate(before["superlink/server.crt"])
    new = x509.load_pem_x509_certificate(renew(folder).read_bytes())
    assert new.serial_number != old.serial_number
    assert new.public_key() == old.public_key()
    new.verify_directly_issued_by(x509.load_pem_x509_certificate(before["authority/ca.crt"]))
    after = contents(folder)
    assert {name for name in after if after[name] != before.get(name)} == {"superlink/server.crt"}


@pytest.mark.parametrize(
    ("broken", "content", "said"),
    [
        ("authority/ca.key", b"", "authority/ca.key: expected a private key, PEM"),
        ("authority/ca.key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "PEM"),
        ("authority/ca.key", new_authority().private, "expected the key of the authority's certificate"),
        ("authority/ca.key", None, "authority/ca.key: expected a file that can be read: No such file"),
        ("authority/ca.crt", b"no certificate", "authority/ca.crt: expected a certificate, PEM"),
        ("authority", None, "authority/ca.key: expected a file that can be read: No such file"),
        ("superlink/server.key", b"x", "superlink/server.key: expected a private key, PEM"),
        ("superlink/server.key", None, "superlink/server.key: expected a file that can be read"),
    ],
)
def test_a_broken_or_lost_key_is_told_and_nothing_is_written(broken, content, said, deployed, capsys):
    folder = deployed()
    if content is not None:
        (folder / broken).write_bytes(content)
    elif (folder / broken).is_dir():
        shutil.rmtree(folder / broken)
    else:
        (folder / broken).unlink()
    before = contents(folder)
    assert main(["deploy", "renew", str(folder)]) == 2
    told = capsys.readouterr().err
    assert said in told.replace("\n", " ")
    assert "restore it from a copy" in told.replace("\n", " ")
    assert "Traceback" not in told
    assert contents(folder) == before


def test_without_an_authoritys_certificate_nobody_new_is_written(deployed):
    folder = deployed()
    (folder / "authority" / "ca.crt").write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"ca.crt: expected a certificate, PEM.*; restore it"):
        initialise(folder, plan(participants=[EAST]))
    assert not (folder / "devices" / "east").exists()


def test_without_tls_there_is_no_certificate_to_renew(deployed):
    with pytest.raises(ConfigError, match="expected a deployment with TLS"):
        renew(deployed(LOCAL, insecure=True))


def test_words_that_yaml_reads_otherwise_survive(deployed):
    rows = [{"name": "2024-01-01", "data": "m:f"}, {"name": "1e-3", "data": "folder:/yes"}]
    folder = deployed(participants=rows)
    assert [one.name for one in read_deployment(folder).plan.participants] == ["2024-01-01", "1e-3"]
    assert read_node_file(folder / "devices" / "1e-3").node_config.participant == "1e-3"
    assert '"1e-3"' in to_yaml({"a": "1e-3"})
