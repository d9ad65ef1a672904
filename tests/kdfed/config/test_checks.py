from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from kdfed.config import Arm, Experiment, server_labels
from kdfed.distill import Distillation, KDMethod, VanillaConsolidation
from kdfed.distill.distillation import ConsolidationResult
from kdfed.settings import PlateauSettings
from simulations.experiments import FAMILIES
from strategies.fedavg import FedAvgServer

LABELLED = {"consolidation.labels": True, "consolidation.weight": 0.5}
VALIDATED = {"consolidation.ensemble": "validated"}
COUNTED = {"consolidation.ensemble": "label-counts", "teachers.label-counts.send": True}


@pytest.mark.parametrize(
    ("arm", "changes", "labels"),
    [
        ("cold", {}, 0),
        ("cold", VALIDATED, 0),  # it does not consolidate
        ("consolidated", {}, 0),
        ("consolidated", COUNTED, 0),  # participants tell them
        ("consolidated", VALIDATED, 20),
        ("consolidated", {"consolidation.ensemble": "stacked"}, 20),
        ("consolidated", {"consolidation.select": "best"}, 20),
        ("consolidated", {"consolidation": {"method": "tuned"}}, 20),
        ("consolidated", LABELLED, 40),
        ("consolidated", {**LABELLED, **VALIDATED}, 60),
        ("cold", {"server": {"strategy": "feddf"}}, 0),
        ("cold", {"closed-form": {"distillation": {}}}, 0),
        ("cold", {"closed-form": {"distillation": {"select": "best"}}}, 20),
        ("cold", {"server": {"strategy": "feddf", "distillation": {"ensemble": "validated"}}}, 20),
    ],
)
def test_labels_that_an_arm_fits_or_chooses_with_are_counted(
    tiny: Callable[..., Experiment], arm: str, changes: dict[str, Any], labels: int
) -> None:
    assert server_labels(tiny(**changes).arm(arm), validation=20, transfer=40) == labels


@pytest.mark.parametrize("stop", [{"stop_at_target": True}, {"plateau": PlateauSettings(stop=True)}])
def test_a_stop_chooses_by_labels(tiny: Callable[..., Experiment], stop: dict[str, Any]) -> None:
    arm = tiny().arm("cold")
    stopped = _with(arm, rounds=arm.rounds.model_copy(update=stop))
    assert server_labels(stopped, validation=20, transfer=40) == 20


def test_a_model_of_the_servers_own_is_fitted_on_the_validation_split(
    tiny: Callable[..., Experiment],
) -> None:
    arm = _with(tiny().arm("cold"), start="server")
    assert server_labels(arm, validation=20, transfer=40) == 20


class SilentMethod(KDMethod):
    def distil(self, work: Distillation) -> ConsolidationResult:
        return VanillaConsolidation().distil(work)


class QuietMethod(SilentMethod):
    uses_validation_labels: ClassVar[bool | None] = False


def test_what_a_class_does_not_say_counts_as_used(tiny: Callable[..., Experiment]) -> None:
    arm = tiny().arm("consolidated")

    def labels(method: KDMethod) -> int:
        return server_labels(_with(arm, consolidation=method), validation=20, transfer=40)

    assert labels(SilentMethod(method="silent")) == 20
    assert labels(QuietMethod(method="quiet")) == 0
    assert labels(QuietMethod(method="quiet", select="best")) == 20
    assert labels(QuietMethod(method="quiet", labels=True)) == 40


class SilentServer(FedAvgServer):
    uses_server_labels: ClassVar[bool | None] = None


def test_a_strategy_that_does_not_say_counts_with_all_that_it_is_shown(
    tiny: Callable[..., Experiment],
) -> None:
    arm = _with(tiny().arm("cold"), server=SilentServer())
    assert server_labels(arm, validation=20, transfer=40) == 60


def _with(arm: Arm, **changes: Any) -> Arm:
    return arm.model_copy(update=changes)


def test_every_thing_that_ships_says_whether_it_uses_labels_of_the_server() -> None:
    methods = FAMILIES["consolidation.method"].members.values()
    assert [kind for kind in methods if kind.uses_validation_labels is None] == []
    strategies = FAMILIES["server.strategy"].members.values()
    assert [kind for kind in strategies if kind.uses_server_labels is None] == []
