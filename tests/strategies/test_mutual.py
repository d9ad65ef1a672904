"""Federated runs in which the received and a personal model teach each other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file

from clients.client_app import app
from clients.participants import simulated
from kdfed.errors import RunError
from kdfed.messages import Simulation
from kdfed.models import build_model, load_state
from kdfed.task import CLASSIFICATION
from kdfed.train import evaluate
from simulations.engines.inprocess import InProcessGrid

MUTUAL: dict[str, Any] = {"local.mode": "mutual", "local.alpha": 0.4, "local.beta": 0.6}
OTHER = {"name": "cnn", "options": {"width": 2}}


def _weights(result: Any) -> dict[str, torch.Tensor]:
    return dict(result.arrays.to_torch_state_dict())


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def _kept(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return what participants keep in the only run below a folder."""
    (root,) = (folder / "store").iterdir()
    return {str(file.relative_to(root)): load_file(file) for file in sorted(root.rglob("*.safetensors"))}


CASES: list[dict[str, Any]] = [
    {},
    {"local.model": OTHER},
    {"server.sampled": 2},
    {"server.strategy": "krum", "server.num-malicious-nodes": 1},
    {"model": {"name": "cnn", "options": {"width": 2, "norm": "batch"}}},
    {"precision": "bfloat16"},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda case: "-".join(case) or "fedavg")
def test_results_are_the_same_for_any_number_of_nodes(tiny, run_arm, changes):
    experiment = tiny(**MUTUAL, **changes)
    one, three = (run_arm(experiment, nodes=nodes) for nodes in (1, 3))
    assert _equal(_weights(one), _weights(three))
    assert [record.accuracy for record in one.records] == [record.accuracy for record in three.records]


def test_a_round_uploads_as_much_as_plain_training(tiny, run_arm):
    mutual, plain = (run_arm(experiment) for experiment in (tiny(**MUTUAL), tiny()))
    assert mutual.records[-1].bytes_up == plain.records[-1].bytes_up
    assert list(_weights(mutual)) == list(_weights(plain))


def test_with_alpha_and_beta_1_the_received_model_is_trained_as_by_plain_training(tiny, run_arm):
    alone = {"local.mode": "mutual", "local.alpha": 1, "local.beta": 1}
    together, apart = _weights(run_arm(tiny(**alone))), _weights(run_arm(tiny()))
    for key, values in apart.items():
        torch.testing.assert_close(together[key], values, rtol=1e-5, atol=1e-6)
    single = {"server.cohort-size": 1}
    assert _equal(_weights(run_arm(tiny(**alone, **single))), _weights(run_arm(tiny(**single))))


def _personal_accuracies(run_arm: Any, experiment: Any, folder: Path) -> list[float]:
    """Run an experiment; return how well each participant's personal model does on its own examples."""
    grid = InProcessGrid(app, 2)
    run_arm(experiment, grid=grid)
    simulation = Simulation.of(experiment.arm("cold"), experiment.seeds[0])
    participants = simulated(simulation)
    data, accuracies = participants.data, []
    model = build_model(experiment.local.model, data.input_shape, data.classes, 0)
    for member, kept in enumerate(_last(folder, experiment.rounds.horizon, len(participants.partition))):
        load_state(model, kept)
        accuracies.append(
            evaluate(model, participants.gather([member], experiment.local.model)[0], CLASSIFICATION)[0]
        )
    shutil.rmtree(folder / "store")
    return accuracies


def _last(folder: Path, rounds: int, participants: int) -> list[dict[str, torch.Tensor]]:
    kept = _kept(folder)
    last = [f"{member}/{rounds}.safetensors" for member in range(participants)]
    assert set(last) <= set(kept)
    return [kept[name] for name in last]


def test_personal_models_go_on_from_round_to_round(tiny, run_arm, tmp_path):
    short, long = (
        _personal_accuracies(
            run_arm, tiny(**MUTUAL, **{"local.model": OTHER, "rounds.horizon": rounds}), tmp_path
        )
        for rounds in (1, 10)
    )
    assert sum(long) / len(long) > sum(short) / len(short) + 0.2


class Twice(InProcessGrid):
    """Handles every message twice, as after a lost reply, and returns the second reply."""

    def _handle(self, message: Message) -> Message:
        one, two = super()._handle(message), super()._handle(message)
        assert one.has_error() == two.has_error()
        assert one.content.array_records.keys() == two.content.array_records.keys()
        for key, record in one.content.array_records.items():
            assert _equal(dict(record.to_torch_state_dict()), _dict(two, key))
        for key, metrics in one.content.metric_records.items():
            assert dict(metrics) == dict(two.content.metric_records[key])
        for key, config in one.content.config_records.items():
            assert dict(config) == dict(two.content.config_records[key])
        return two


def _dict(message: Message, key: str) -> dict[str, torch.Tensor]:
    return dict(message.content.array_records[key].to_torch_state_dict())


def test_a_message_that_is_handled_again_gives_the_same_reply(tiny, run_arm):
    experiment = tiny(**MUTUAL, **{"server.sampled": 3})
    assert _equal(_weights(run_arm(experiment, grid=Twice(app, 2))), _weights(run_arm(experiment)))


@pytest.mark.parametrize("grid", [InProcessGrid, Twice])
def test_a_participant_that_fails_costs_only_itself_and_the_others_keep_the_same_models(
    tiny, run_arm, tmp_path, monkeypatch, grid
):
    """Its cohort fails after a part is trained, and kept; then everybody trains alone."""
    import clients.client_app
    from kdfed.seeding import derive

    train_cohort = clients.client_app.train_cohort

    def failing(*args: Any, **more: Any) -> Iterator[Any]:
        parts = list(train_cohort(*args, **more))
        seeds = args[6]
        broken = any(derive(3, "train", r, 1) in seeds for r in (1, 2, 3))
        if len(seeds) > 1 or not broken:
            yield parts[0]
        if broken:
            raise RuntimeError("no memory")
        yield from parts[1:]

    monkeypatch.setattr(clients.client_app, "train_cohort", failing)
    result = run_arm(tiny(**MUTUAL, **{"server.cohort-size": 5}), grid=grid(app, 2))
    (absent,) = result.records[-1].absent
    assert absent.participant == 1
    assert "no memory" in absent.reason
    assert {name.partition("/")[0] for name in _kept(tmp_path)} >= {"0", "2", "3", "4"}


def test_a_run_that_gives_participants_no_place_is_refused(tiny, run_arm):
    experiment = tiny(**MUTUAL)
    with pytest.raises(RunError, match=r"expected a place where participants can keep a model"):
        run_arm(experiment, simulation=Simulation.of(experiment.arm("cold"), 3))
