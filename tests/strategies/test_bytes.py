"""The ledger's bytes, phase by phase, against one message of one participant that nothing is packed around.

The slow twin sends participant 0 what a strategy would send it, without the records of cohorts; the ClientApp
answers it as it answers a plain Flower message. The records of both are counted key by key, and multiplied.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from clients.client_app import app
from kdfed.config import Arm, Experiment
from kdfed.data import prepare
from kdfed.ledger import Costs, Ledger
from kdfed.messages import COHORTS, SIMULATION, Asked, Evaluate, Simulation, Train, TrainTeacher, versions
from kdfed.models import State
from simulations.engines.inprocess import InProcessGrid
from simulations.server_app import server_data
from strategies.arm import initial_state

EVERYBODY = 5
ROUNDS = 2


class LooksAtSingleModels(FedAvg):
    """Gets each participant's reply: nothing says that the mean is enough for it."""


def own_strategy(kind: type[FedAvg], evaluates: bool = False) -> FedAvg:
    more = {"min_evaluate_nodes": 1} if evaluates else {"fraction_evaluate": 0.0}
    return kind(min_train_nodes=1, min_available_nodes=1, **more)


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch, run_arm: Any) -> Any:
    """Return a function that runs an arm and returns what its ledger counted, by phase."""
    made: list[Ledger] = []

    def remembered() -> Ledger:
        made.append(Ledger())
        return made[-1]

    def run(*args: Any, **more: Any) -> dict[str, Costs]:
        run_arm(*args, **more)
        return made[-1].by_phase()

    monkeypatch.setattr("strategies.arm.Ledger", remembered)
    return run


# ----------------------------------------------------------------------------- the slow twin


def counted(content: RecordDict) -> int:
    """Bytes of names, of serialised arrays, of text, and eight for each number."""
    assert not {COHORTS, SIMULATION} & set(content)
    total = 0
    for record in content.values():
        for key, value in record.items():
            total += len(key)
            if isinstance(record, ArrayRecord):
                total += len(value.data)
            elif isinstance(value, str):
                total += len(value.encode())
            else:
                total += 8 * len(value) if isinstance(value, list) else 8
    return total


class Alone:
    """A participant that is sent plain messages."""

    def __init__(self, experiment: Experiment, arm: str) -> None:
        self.arm: Arm = experiment.arm(arm)
        self.data = server_data(prepare(self.arm.data))
        self.seed = experiment.seeds[0]

    @property
    def start(self) -> State:
        return initial_state(self.arm, self.data, self.seed)

    def exchanges(self, asked: Asked) -> tuple[int, int]:
        """Return the bytes down and up of one message."""
        content = asked.to_record()
        down = counted(content)
        content[SIMULATION] = Simulation.of(self.arm, self.seed).to_record()
        grid = InProcessGrid(app, 1)
        (node,) = grid.get_node_ids()
        (reply,) = grid.send_and_receive([Message(content, node, asked.type)])
        return down, counted(reply.content)

    def teacher(self) -> tuple[int, int]:
        settings, inputs = self.arm.teachers, None
        if settings.upload == "logits":
            inputs = torch.from_numpy(self.data.transfer_inputs)
        arrays = self.start if settings.init == "common" else {}
        return self.exchanges(
            TrainTeacher(
                seed=self.seed, model=self.arm.model, settings=settings, arrays=arrays, inputs=inputs
            )
        )

    def round(self) -> tuple[int, int]:
        return self.exchanges(
            Train(
                seed=self.seed,
                model=self.arm.model,
                arrays=self.start,
                server_round=1,
                local=self.arm.local,
            )
        )

    def evaluation(self) -> tuple[int, int]:
        return self.exchanges(
            Evaluate(seed=self.seed, model=self.arm.model, arrays=self.start, server_round=1)
        )


def hello() -> tuple[int, int]:
    """Down the server's versions; up those of the participant, and how many examples it holds."""
    told = len("versions") + len(json.dumps(versions()))
    return told, told + len("num-examples") + 8


def bytes_in(costs: Costs, messages: int) -> tuple[float, float]:
    return costs.bytes_down / messages, costs.bytes_up / messages


# ----------------------------------------------------------------------------- phase by phase

COUNTS = {
    "teachers.label-counts": {"send": True},
    "consolidation": {"method": "vanilla", "ensemble": {"ensemble": "label-counts"}, "epochs": 1},
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"teachers.init": "own"}, {"teachers.upload": "logits"}, COUNTS],
    ids=["weights", "own weights", "logits", "label counts"],
)
def test_teachers_cost_what_one_message_and_its_reply_hold(tiny, phases, changes):
    experiment = tiny(**{"rounds.horizon": 0, **changes})
    found = phases(experiment, "consolidated")
    assert set(found) == {"hello", "teachers"}
    assert bytes_in(found["hello"], EVERYBODY) == hello()
    assert bytes_in(found["teachers"], EVERYBODY) == Alone(experiment, "consolidated").teacher()


@pytest.mark.parametrize("kind", [FedAvg, LooksAtSingleModels])
@pytest.mark.parametrize("changes", [{}, {"local.batch-size": 1000}], ids=["models", "sums"])
def test_rounds_cost_the_same_with_means_and_with_single_replies(tiny, phases, kind, changes):
    experiment = tiny(**{"rounds.horizon": ROUNDS, **changes})
    found = phases(experiment, strategy=own_strategy(kind))
    assert set(found) == {"hello", "rounds"}
    assert bytes_in(found["hello"], EVERYBODY) == hello()
    assert bytes_in(found["rounds"], EVERYBODY * ROUNDS) == Alone(experiment, "cold").round()


def test_the_evaluation_of_participants_is_counted_apart_by_the_same_rule(tiny, phases):
    experiment = tiny(**{"rounds.horizon": ROUNDS})
    found = phases(experiment, strategy=own_strategy(FedAvg, evaluates=True))
    alone = Alone(experiment, "cold")
    assert bytes_in(found["evaluate"], EVERYBODY * ROUNDS) == alone.evaluation()
    assert bytes_in(found["rounds"], EVERYBODY * ROUNDS) == alone.round()


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("consolidated", {}),
        ("consolidated", {"teachers.upload": "logits"}),
        ("cold", {"server.strategy": "fedmedian"}),
        ("cold", {"server.strategy": "fedmd"}),
    ],
    ids=["means", "logits of teachers", "single replies", "logits in every round"],
)
def test_neither_cohorts_nor_nodes_change_a_byte(tiny, phases, arm, changes):
    def found(cohort_size: int, nodes: int) -> dict[str, Costs]:
        experiment = tiny(**{"rounds.horizon": ROUNDS, **changes, "server.cohort-size": cohort_size})
        return phases(experiment, arm, nodes=nodes)

    alone = found(1, 1)
    assert alone["rounds"].bytes_up > 0
    for cohort_size, nodes in ((3, 1), (8, 1), (1, 2), (3, 2)):
        assert found(cohort_size, nodes) == alone
