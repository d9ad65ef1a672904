"""Files of one's own that do what nobody should: one clear error, and no other arm is lost."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from kdfed.errors import ConfigError
from simulations.cli import main
from simulations.study.settings import StudySettings, load_study, read_study

EXPERIMENT = """
name: hostile
data: {{source: "synthetic:examples=300,classes=3,shape=8"}}
partition: {{kind: uniform, participants: 3}}
model: {{name: mlp, options: {{hidden: [8]}}}}
teachers: {{epochs: 1}}
consolidation: {{epochs: 1}}
rounds: {{horizon: 1}}
arms:
  own: {{{own}}}
  cold: {{start: random}}
baseline: cold
"""
IMPORTS = """
from __future__ import annotations
import torch
from pydantic import field_validator
from kdfed.distill.method import KDMethod
from kdfed.ensembles.ensemble import Ensemble
from kdfed.partitions.scheme import PartitionBase
from kdfed.thing import Refusal
"""
METHOD = "start: consolidated, consolidation: {{method: '{module}:Own'}}"
ENSEMBLE = "start: consolidated, consolidation: {{ensemble: '{module}:Own'}}"
DISTIL = """
    def distil(self, work):
        return work.follow(lambda *_: _[0].mean(0), lambda *_: _[0].sum(1))
"""
CHECKED = """
class Own(KDMethod):
    at: float = 1.0
    @field_validator('epochs')
    def check(cls, value):
        raise {raised}
"""
MEAN = """
class Own(Ensemble):
    share: float = 0.5
    def target(self, logits_KNC, temperature, scores_KC):
        return torch.softmax(self.share * logits_KNC.mean(0) / temperature, dim=1)
"""


def run(folder: Path, code: str, own: str, *more: str) -> int:
    module = f"hostile_{uuid4().hex}"
    (folder / f"{module}.py").write_text(IMPORTS + code, encoding="utf-8")
    text = EXPERIMENT.format(own=own.format(module=module))
    (folder / "experiment.yaml").write_text(text, encoding="utf-8")
    words = ["run", str(folder / "experiment.yaml"), "--engine", "inprocess", "--out", str(folder / "out")]
    return main([*words, *more])


@pytest.mark.parametrize(
    ("code", "own", "told"),
    [
        (
            f"class Own(KDMethod):\n    at: Path = None\n{DISTIL}",
            METHOD,
            "name 'Path' is not defined",
        ),
        (
            CHECKED.format(raised="TypeError('no such epoch')") + DISTIL,
            METHOD,
            "arms.own: expected settings that can be made and written; they raised TypeError: no such epoch",
        ),
        (
            CHECKED.format(raised="SystemExit(0)") + DISTIL,
            METHOD,
            "must not end the program",
        ),
        (
            "class Own(KDMethod):\n    model_config = {'arbitrary_types_allowed': True}\n"
            f"    at: object = torch.zeros(2)\n{DISTIL}",
            METHOD,
            "Unable to serialize unknown type",
        ),
        (
            f"class Own(KDMethod):\n    def refusals(self, arm):\n        yield Refusal(3, 4)\n{DISTIL}",
            METHOD,
            "said Refusal(key=3, message=4, depends=()), which is no kdfed.thing.Refusal of texts",
        ),
        (
            f"class Own(KDMethod):\n    def refusals(self, arm):\n        return ['abc']\n{DISTIL}",
            METHOD,
            "said 'abc', which is no kdfed.thing.Refusal",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_settings_is_a_mistake(
    tmp_path: Path, code: str, own: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, code, own) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 1, "'bye'"])
def test_code_that_ends_the_program_costs_its_own_arm(
    tmp_path: Path, code: object, capsys: pytest.CaptureFixture[str]
) -> None:
    method = f"class Own(KDMethod):\n    def distil(self, work):\n        raise SystemExit({code})\n"
    assert run(tmp_path, method, METHOD) == 1
    assert "arm own, seed 0: SystemExit" in capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert [failure["arm"] for failure in summary["failures"]] == ["own"]
    assert {one["arm"] for one in summary["runs"] if one["stopped"] == "horizon"} == {"cold"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [
        "server: {{strategy: feddf, distillation: {{ensemble: '{module}:Own', share: 0.3, epochs: 1}}}}",
        "start: consolidated, consolidation: {{method: tuned, ensemble: '{module}:Own', share: 0.3}}",
        ENSEMBLE,
    ],
)
def test_an_ensemble_of_ones_own_serves_whoever_has_ensembles(tmp_path: Path, own: str) -> None:
    assert run(tmp_path, MEAN, own) == 0


def test_a_partition_with_a_list_among_its_settings_is_dealt(tmp_path: Path) -> None:
    code = """
class Own(PartitionBase):
    shares: list[float] = [0.5, 0.3, 0.2]
    def deal(self, labels, classes, generator):
        import numpy as np
        return np.split(np.arange(len(labels)), (np.cumsum(self.shares)[:-1] * len(labels)).astype(int))
"""
    (tmp_path / "hostile_deal.py").write_text(IMPORTS + code, encoding="utf-8")
    text = EXPERIMENT.format(own="start: random").replace("kind: uniform", "kind: 'hostile_deal:Own'")
    (tmp_path / "experiment.yaml").write_text(text, encoding="utf-8")
    words = [
        "run",
        str(tmp_path / "experiment.yaml"),
        "--engine",
        "inprocess",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0


@pytest.mark.parametrize(
    ("key", "value"), [("ensemble", "null"), ("transfer", "null"), ("ensemble", "'my-mod:M'")]
)
def test_what_names_nothing_is_a_mistake_that_says_how_names_look(
    tmp_path: Path, key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "", f"start: consolidated, consolidation: {{{{{key}: {value}}}}}") == 2
    error = capsys.readouterr().err
    assert f"arms.own.consolidation.{key}: expected one of " in error
    assert "or package.module:name, got " in error


def test_nested_keys_of_ones_own_are_no_names(tmp_path: Path) -> None:
    code = f"""
from kdfed.settings import Settings
class Inner(Settings):
    method: str = "a:b"
class Own(KDMethod):
    inner: Inner = Inner()
{DISTIL}"""
    assert run(tmp_path, code, METHOD.replace("Own'", "Own', inner: {{method: 'c:d'}}")) == 0


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_code_than_it_began_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command would mix two codes in one record."""
    code = f"class Own(KDMethod):\n    at: float = 1.0\n{DISTIL}"
    assert run(tmp_path, code, METHOD) == 0
    (tmp_path / "out" / "summary.json").unlink()  # as if it had been killed at the very end
    (file,) = tmp_path.glob("hostile_*.py")
    before = (tmp_path / "out" / "outcomes.jsonl").read_bytes()
    again = [
        "run",
        str(tmp_path / "experiment.yaml"),
        "--engine",
        "inprocess",
        "--out",
        str(tmp_path / "out"),
    ]
    text = file.read_text(encoding="utf-8")
    file.write_text(f"{text}# another\n", encoding="utf-8")
    assert main(again) == 2
    assert f"holds runs made with other code of '{file.stem}:Own'" in capsys.readouterr().err
    assert (tmp_path / "out" / "outcomes.jsonl").read_bytes() == before
    file.write_text(text, encoding="utf-8")
    assert main(again) == 0


STUDY = """
name: hostile
data: {{source: "synthetic:examples=300,classes=3,shape=8"}}
model: {{name: mlp, options: {{hidden: [8]}}}}
methods: {methods}
distributions: {{even: {{kind: uniform}}}}
temperature: 4.0
weight: 0.5
{more}
"""


def study(folder: Path, code: str, methods: str, more: str = "") -> StudySettings:
    module = f"hostile_{uuid4().hex}"
    (folder / f"{module}.py").write_text(IMPORTS + code, encoding="utf-8")
    text = STUDY.format(methods=methods, more=more).replace("MODULE", module)
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    return load_study(folder / "study.yaml")


def test_a_study_takes_ensembles_and_methods_of_ones_own(tmp_path: Path) -> None:
    code = f"{MEAN}\nclass Method(KDMethod):\n    at: float = 1.0\n{DISTIL}"
    own = "distillation: {ensemble: 'MODULE:Own', share: 0.25}"
    made = study(tmp_path, code, "[vanilla, 'MODULE:Method']", own)
    assert made.distillation.ensemble.share == 0.25
    again = read_study(made.model_dump_json(by_alias=True))
    assert again.model_dump() == made.model_dump()
    assert again.method(again.methods[1]).__name__ == "Method"


@pytest.mark.parametrize(
    ("methods", "more", "key", "told"),
    [
        ("null", "", "methods", "expected a list"),
        ("3", "", "methods", "expected a list"),
        ("[vanilla]", "vary: {transfer: 3}", "vary.transfer", "expected a list"),
        ("['MODULE:Gone']", "", "methods", "has no attribute 'Gone'"),
        ("['MODULE:Method']", "", "methods", "in a study; give need a default"),
    ],
)
def test_mistakes_of_a_study_have_its_keys(
    tmp_path: Path, methods: str, more: str, key: str, told: str
) -> None:
    code = f"class Method(KDMethod):\n    need: float\n{DISTIL}"
    with pytest.raises(ConfigError) as caught:
        study(tmp_path, code, methods, more)
    assert [told in mistake.message for mistake in caught.value.mistakes if mistake.key == key] == [True]
