"""Who is part of a simulation: our actors and Flower's, and nobody else's."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from clients import actors
from clients.actors import ACTORS, IN_PROCESS, is_simulated
from kdfed.private.flwr import SIMULATION_ACTORS


def _context(**node_config: Any) -> Context:
    return Context(1, 1001, {"partition-id": 0, "num-partitions": 2, **node_config}, RecordDict(), {})


def test_a_plain_process_is_none():
    assert actors.actor_class() is None
    assert not is_simulated(_context())
    assert is_simulated(_context(**{IN_PROCESS: True}))


@pytest.mark.parametrize("key", ["participant", "data"])
def test_a_node_with_a_participant_or_data_of_its_own_is_never_simulated(key, monkeypatch):
    monkeypatch.setattr(actors, "actor_class", lambda: next(iter(ACTORS)))
    assert is_simulated(_context())
    assert not is_simulated(_context(**{key: "0"}))
    assert not is_simulated(_context(**{key: "0", IN_PROCESS: True}))


def _named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def test_the_names_are_those_of_classes_that_exist():
    pytest.importorskip("ray")
    for name in ACTORS:
        assert _named(name), name


@pytest.fixture
def _collected() -> Iterator[None]:
    """Find the files that Ray leaves open at once: a later test would be blamed for them."""
    yield
    gc.collect()


class Foreign:
    """Somebody's own Ray actor, in which a device might run."""

    def simulated(self) -> tuple[str | None, bool]:
        return actors.actor_class(), is_simulated(_context())


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_collected")
def test_anybody_elses_actor_is_no_simulation_and_flowers_is():
    import ray

    from simulations.engines import ray as engine

    class Asked:
        """In place of a ClientApp."""

        def __call__(self, message: Any, context: Any) -> Any:
            return Foreign().simulated()

    with engine.started(1):
        foreign = ray.remote(num_cpus=0)(Foreign).remote()
        assert ray.get(foreign.simulated.remote()) == (f"{__name__}.Foreign", False)
        for name in SIMULATION_ACTORS:
            flower = _named(name).options(num_cpus=0).remote()
            _, told, _ = ray.get(flower.run.remote(Asked, None, "1", None))
            assert told == (name, True)
