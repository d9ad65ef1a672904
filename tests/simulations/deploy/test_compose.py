"""The files for containers keep to the compose specification, and no key gets into an image."""

from __future__ import annotations

import json
import os
from importlib import resources

import pytest
import yaml

from simulations.deploy.compose import compose, compose_files
from simulations.deploy.settings import Plan
from tests.simulations.deploy.conftest import PLAN

VERSIONS = {"kdfed": "0.1.0", "flwr": "1.42.0", "torch": "2.9.0+cpu"}


def test_the_file_keeps_to_the_compose_specification():
    pytest.importorskip("check_jsonschema", reason="the compose schema comes with check-jsonschema")
    jsonschema = pytest.importorskip("jsonschema")
    schemas = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text(encoding="utf-8"))
    rows = [
        {**PLAN["participants"][0], "store": "/srv/store", "teacher": "/srv/t.pt"},
        PLAN["participants"][1],
    ]
    plan = Plan.model_validate({**PLAN, "participants": rows})
    written = yaml.safe_load(compose_files(plan, VERSIONS)["compose.yaml"])
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(written)] == []
    written["services"]["superlink"]["comand"] = "x"
    assert not validator.is_valid(written)


def test_every_device_has_its_folder_its_data_and_nothing_of_another():
    services = compose(Plan.model_validate(PLAN))["services"]
    assert set(services) == {"superlink", "device-north", "device-south"}
    bound = {name: [one["source"] for one in service["volumes"]] for name, service in services.items()}
    assert bound == {
        "superlink": ["./superlink"],
        "device-north": ["./devices/north", "/srv/images"],
        "device-south": ["./devices/south", "/srv/table.npz"],
    }
    assert services["device-north"]["volumes"][1]["read_only"] is True
    assert all(one["user"] == "${KDFED_USER}" for one in services.values())


def test_a_dollar_in_a_path_is_no_variable():
    rows = [{"name": "north", "data": "folder:/srv/${HOME}"}]
    services = compose(Plan.model_validate({**PLAN, "participants": rows}))["services"]
    assert services["device-north"]["volumes"][1]["source"] == "/srv/$${HOME}"


def test_docker_sees_the_wheels_alone_and_containers_run_as_who_owns_the_keys():
    files = compose_files(Plan.model_validate(PLAN), VERSIONS)
    assert files[".dockerignore"] == "*\n!wheels\n"
    assert f"KDFED_USER={os.getuid()}:{os.getgid()}" in files[".env"]
    copied = [line for line in files["Dockerfile"].splitlines() if line.startswith(("COPY", "ADD"))]
    assert copied == ["COPY wheels /wheels"]
    assert 'RUN pip install --find-links /wheels "kdfed[$EXTRA]==0.1.0" flwr==1.42.0' in files["Dockerfile"]
