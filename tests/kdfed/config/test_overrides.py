from __future__ import annotations

from pathlib import Path

import pytest

from kdfed.errors import ConfigError
from simulations.experiments import load_experiment

TEXT = """
name: x
model: {name: cnn, options: {width: 4}}
local: {mode: plain, lr: 0.1}
arms:
  cold: {start: random, local.lr: 0.2}
  warm: {start: consolidated, local: {mode: kd, lr: 0.3}, model.name: mlp}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "experiment.yaml"
    file.write_text(TEXT)
    return file


@pytest.mark.parametrize(
    ("assignments", "keys"),
    [
        (["start=file:/nonexistent.pt"], ["start"]),
        (["local.lr=0.5"], ["local.lr"]),
        (["local={lr: 0.5, epochs: 2}"], ["local.lr"]),
        (["arms.warm.start=random", "teachers.epochs=2", "consolidation={epochs: 3, lr: 0.1}"],
         ["teachers.epochs", "consolidation.epochs", "consolidation.lr"]),
        (["arms.warm.start=averaged", "teachers.epochs=2", "consolidation.lr=0.1"], ["consolidation.lr"]),
        (["arms.cold.model.name=mlp", "model.options.width=2"], ["model.options.width"]),
        (["arms.warm.consolidation={method: mutual}", "consolidation.temperature=2"],
         ["consolidation.temperature"]),
        (["server-fit={epochs: 3, labels: true}"], ["server-fit.epochs", "server-fit.labels"]),
        (["arms.warm.start=server", "teachers.epochs=2", "server-fit.epochs=3"], ["teachers.epochs"]),
    ],
)  # fmt: skip
def test_an_override_that_no_arm_uses_is_a_mistake(
    path: Path, assignments: list[str], keys: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, assignments)
    assert [mistake.key for mistake in caught.value.mistakes] == keys
    assert all("no arm uses it" in mistake.message for mistake in caught.value.mistakes)


@pytest.mark.parametrize(
    "assignment",
    [
        *("local.epochs=2", "teachers.epochs=2", "consolidation.epochs=2", "model.options.width=2"),
        *("local.mode=proximal local.mu=0.1", "server.strategy=fedadam", "rounds.horizon=3", "seeds=[4]"),
        *("arms.cold.local.lr=0.5", "arms.hot.start=consolidated", "local.lr=0.5 arms.hot={}"),
        "arms.hot.start=server server-fit.epochs=3",
    ],
)
def test_an_override_that_one_arm_uses_is_taken(path: Path, assignment: str) -> None:
    load_experiment(path, assignment.split())


def test_the_mistake_tells_which_arms_replace_it_and_which_have_no_use_for_it(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, ["arms.warm.consolidation.epochs=4", "consolidation.epochs=2"])
    (mistake,) = caught.value.mistakes
    assert "(replaced in warm; consolidation not used in cold)" in mistake.message


def test_an_override_that_is_wrong_too_is_one_mistake(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, ["local.lr=fast"])
    assert [mistake.message for mistake in caught.value.mistakes] == ["expected a number, got 'fast'"]


def test_what_a_file_shares_may_wait_for_an_arm(path: Path) -> None:
    path.write_text("name: x\nstart: averaged\nteachers: {epochs: 3}\narms: {cold: {start: random}}\n")
    load_experiment(path)


def test_seeds_are_given_once(path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds: is given twice"):
        load_experiment(path, ["seeds=[1]"], seeds=["2"])


@pytest.mark.parametrize("source", ["parquet:~nobody-here/x", "folder:~nobody-here"])
def test_a_home_that_does_not_exist_is_left_to_be_not_found(path: Path, source: str) -> None:
    assert load_experiment(path, [f"data.source={source}"]).data.source == source
