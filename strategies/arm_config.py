"""What one run of one arm needs on the server side."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from kdfed.augmentation import stored_views
from kdfed.config import Arm
from kdfed.data import Examples, Normalisation
from kdfed.events import OnEvent, ignore
from kdfed.listeners import Listener
from kdfed.messages import Simulation
from kdfed.models import build_model
from kdfed.reading import inputs_for
from kdfed.records import RoundRecord
from kdfed.saved import Card
from kdfed.seeding import derive, torch_generator
from kdfed.settings import DistillationSettings, ModelSettings
from kdfed.setup import Setup
from kdfed.task import Task
from strategies.roster import Devices

D = TypeVar("D", bound=DistillationSettings)


@dataclass(frozen=True)
class ServerData:
    """What the server holds: no participant's example among it.

    Parameters
    ----------
    transfer, validation
        Held-out splits as the arm's model reads them, float32 [N, ...] and int64 [N].
    transfer_inputs
        The transfer set's inputs as stored, [N, ...]: what participants are sent when they upload logits.
    classes
        Number of classes; 1, the number of outputs, in a regression.
    task
        What is learnt.
    validation_inputs
        The validation split's inputs as stored, [N, ...].
    normalisation
        By which models without a backbone read inputs. Both are asked for only where a model has a backbone.
    """

    transfer: Examples
    validation: Examples
    transfer_inputs: np.ndarray
    classes: int
    task: Task
    validation_inputs: np.ndarray | None = None
    normalisation: Normalisation | None = None

    def showing(self, splits: Collection[str]) -> ServerData:
        """Return the same data, with the labels of no other splits than these of validation and transfer."""
        hidden = {
            name: getattr(self, name).without_labels()
            for name in ("validation", "transfer")
            if name not in splits
        }
        return replace(self, **hidden)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as it is stored."""
        return tuple(int(size) for size in self.transfer_inputs.shape[1:])


@dataclass(frozen=True)
class HeldOut:
    """What rounds are counted on: of everything on the server side only the evaluation sees it.

    Parameters
    ----------
    evaluation
        Curves, hits and converged accuracies are read on it; float32 [N, ...] and int64 [N].
    test
        Only reported; None to leave it out.
    """

    evaluation: Examples
    test: Examples | None = None


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """Everything that one run of one arm needs.

    Parameters
    ----------
    arm
        The resolved settings.
    data
        The server's data.
    held_out
        What rounds are counted on. Default: the validation split, and nothing is said of a test split.
    seed
        The run's seed.
    name
        The arm's name in records.
    targets
        Accuracies in (0, 1]; the arm stops when all are reached, if ``arm.rounds.stop_at_target``.
    never_stop
        Run all rounds, whatever a listener says: for arms that are compared.
    simulation
        Whose data the nodes of a simulation use. Default: every node of the grid is one participant.
    devices
        What devices that run kdfed's ClientApp are told, and who they are. Default: the nodes run somebody
        else's.
    card
        What a model file of the arm says beside the weights; asked for only where ``arm.teachers.from`` names
        teachers that exist already, which must fit it.
    on_record, on_event
        Told every evaluation, and every step.
    listeners
        Who else follows the arm, beside those that its settings name.
    """

    arm: Arm
    data: ServerData
    held_out: HeldOut | None = None
    seed: int = 0
    name: str = "arm"
    targets: tuple[float, ...] = ()
    never_stop: bool = False
    simulation: Simulation | None = None
    devices: Devices | None = None
    card: Card | None = None
    on_record: Callable[[RoundRecord], None] = lambda record: None
    on_event: OnEvent = ignore
    listeners: tuple[Listener, ...] = ()

    @cached_property
    def setup(self) -> Setup:
        """How the server distils and evaluates.

        Raises
        ------
        DataError
            If this machine has not the arm's device.
        """
        return Setup.of(self.arm, self.data.task)

    def build(self, model: ModelSettings, phase: str) -> nn.Module:
        """Build a model for the arm's data; its initial weights are drawn for this seed and phase."""
        seed = derive(self.seed, phase)
        return build_model(model, self.data.input_shape, self.data.classes, seed)

    def inputs(self, stored: np.ndarray | None, model: ModelSettings) -> torch.Tensor:
        """Return inputs of the server's as a model reads them; see :func:`kdfed.reading.inputs_for`."""
        assert stored is not None, "a backbone reads inputs as they are stored: give all of ServerData"
        assert self.data.normalisation is not None, "give all of ServerData"
        return inputs_for(model, stored, self.data.normalisation, self.setup.device)

    @property
    def stored_transfer(self) -> Examples:
        """The transfer split with its inputs as they are stored, which models with a backbone read."""
        return Examples(torch.from_numpy(self.data.transfer_inputs), self.data.transfer.labels)

    def read(self, stored: Examples, model: ModelSettings) -> Examples:
        """Return examples as a model reads them; given are their inputs as they are stored."""
        return Examples(self.inputs(stored.inputs.numpy(), model), stored.labels)

    def views_of(self, images: Examples, settings: D, seed: int) -> tuple[Examples, D]:
        """Return changed copies of stored images, and settings that change them no more.

        A frozen part is computed once for each image, so what it reads is changed beforehand.

        Parameters
        ----------
        images
            uint8 [N, C, H, W], with their labels.
        settings
            With ``views``, where it has an ``augmentation``.
        seed
            Derived seed of the distillation.
        """
        if not settings.augmentation:
            return images, settings
        assert settings.views is not None, "refused before"
        draw = torch_generator(seed, "augmentation")
        inputs = stored_views(images.inputs, settings.augmentation, settings.views, draw)
        unchanged = settings.model_copy(update={"augmentation": (), "views": None})
        return Examples(inputs, images.labels.repeat(settings.views)), unchanged

    @property
    def is_given(self) -> bool:
        """Whether the arm is one of a ServerApp of somebody's own, whose nodes run their own ClientApp."""
        return self.simulation is None and self.devices is None

    @property
    def flower(self) -> dict[str, Any]:
        """What strategies of Flower's are given: kdfed samples participants, and evaluates on the server."""
        return {
            "fraction_train": 1.0,
            "fraction_evaluate": 0.0,
            "min_train_nodes": 1,
            "min_evaluate_nodes": 0,
            "min_available_nodes": 1,
        }
