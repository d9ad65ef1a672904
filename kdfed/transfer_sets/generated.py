r"""Transfer examples generated from the teachers, without any data.

A generator is trained so that the teachers take what it draws for examples of theirs; then it is frozen, and
the transfer set is drawn from it. With the mean m(x) of the teachers' logits and the probabilities
:math:`p(x) = \mathrm{softmax}(m(x))`, it minimises over a batch of N examples x

.. math::
    w_o \frac{1}{N} \sum_x -\log \max_c p_c(x)
    \; + \; w_e \sum_c \bar p_c \log \bar p_c
    \; - \; w_a \, \overline{\lvert f(x) \rvert},
    \qquad \bar p = \frac{1}{N} \sum_x p(x)

that is: the teachers are sure of each example (one-hot loss), the classes of a batch are balanced
(information entropy), and what enters the teachers' last linear layer, f, is large (activation loss).

Deviations from the source: several teachers, by the mean of their logits as in DENSE; the generator is
smaller, and trained first: the student distils afterwards, by any method, where the source trains both in
turns.
DENSE's loss on BatchNorm's statistics is left out: most models here have no BatchNorm, because its statistics
do not survive the averaging of weights.

Shape suffixes: K teachers, N examples, C classes, Z latent values.

References
----------
Chen et al. 2019, "Data-Free Learning of Student Networks" (DAFL), arXiv 1904.01186, section 3.
Zhang et al. 2022, "DENSE: Data-Free One-Shot Federated Learning", arXiv 2112.12371, section 3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from kdfed.data import PreparedData
from kdfed.errors import ConfigError, KdfedError
from kdfed.models import build_model, device_of, spare_inputs
from kdfed.seeding import derive, torch_generator, torch_seed
from kdfed.settings import Passes, PositiveInt, Rate, Settings, Weight, several
from kdfed.thing import Refusal
from kdfed.transfer_sets.transfer_set import DrawnSet


class GeneratorSettings(Settings):
    """The generator of the transfer set ``generated``, trained against the teachers (Chen et al. 2019)."""

    steps: Passes = 200
    """Optimiser steps (Adam)."""
    batch_size: Annotated[int, Field(ge=2, le=10**6)] = 128
    """Examples a step, 2 or more: each class should be among them."""
    lr: Rate = 0.001
    """Learning rate, above 0."""
    latent: PositiveInt = 100
    """Standard normal values that an example is drawn from."""
    width: PositiveInt = 16
    """Channels of the last hidden layer, twice as many before; for feature vectors, a quarter of the hidden
    units."""
    one_hot_weight: Weight = 1.0
    """Weight of the one-hot loss: the teachers should be sure of each example. 0 turns it off."""
    entropy_weight: Weight = 5.0
    """Weight of the information entropy: a batch should hold all classes alike. 0 turns it off."""
    activation_weight: Weight = 0.1
    """Weight of the activation loss: what enters the teachers' last linear layer should be large. 0 turns it
    off."""


class GeneratedSet(DrawnSet):
    """Drawn from a generator that is trained against the teachers (DAFL); no data, no labels."""

    transfer: Literal["generated"] = "generated"
    """The transfer set."""
    generator: GeneratorSettings = GeneratorSettings()
    """The generator."""

    needs_classes: ClassVar[str] = "its generator asks for examples of every class"
    needs_teachers: ClassVar[bool] = True

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Ask for a loss."""
        chosen = self.generator
        if not (chosen.one_hot_weight or chosen.entropy_weight or chosen.activation_weight):
            yield Refusal(
                ".generator",
                "expected one weight above 0, got 0 for all terms: there is nothing to train it on",
            )

    def misfits(self, arm: Any, data: PreparedData) -> Iterator[Refusal]:
        """Look for what the loss reads of the teachers."""
        for model in several(arm.teachers.model) or (arm.model,):
            try:
                teacher = build_model(model, data.input_shape, data.classes, seed=0)
            except ConfigError:  # it is refused with the model itself
                continue
            problem = teacher_problem(teacher, self.generator)
            if problem:
                yield Refusal(".generator.activation-weight", problem)

    def draw(
        self, input_shape: tuple[int, ...], count: int, teachers: Sequence[nn.Module], seed: int
    ) -> torch.Tensor:
        """Train the generator, and draw from it; see :func:`generate`."""
        return generate(teachers, input_shape, count, self.generator, seed)


def generator_loss(
    logits_KNC: torch.Tensor, features: Sequence[torch.Tensor], settings: GeneratorSettings
) -> torch.Tensor:
    """Return what the generator minimises on a batch, in nats; see the equation of this module.

    Parameters
    ----------
    logits_KNC
        The teachers' logits of generated examples, float [K, N, C].
    features
        What entered each teacher's last linear layer, one [N, ...] a teacher. Not read where
        ``settings.activation_weight`` is 0.
    settings
        Weights of the terms.

    Examples
    --------
    >>> logits = torch.tensor([[[math.log(3), 0.0], [0.0, math.log(3)]]])
    >>> features = [torch.tensor([[1.0, -2.0], [0.0, 3.0]])]
    >>> weights = GeneratorSettings(one_hot_weight=1.0, entropy_weight=5.0, activation_weight=0.1)
    >>> round(generator_loss(logits, features, weights).item(), 3)  # -ln(3/4) - 5 ln 2 - 0.1 * 3/2
    -3.328
    """
    mean_NC = logits_KNC.mean(0)
    one_hot = functional.cross_entropy(mean_NC, mean_NC.argmax(1))
    share_C = torch.softmax(mean_NC, dim=1).mean(0)
    loss = settings.one_hot_weight * one_hot + settings.entropy_weight * torch.xlogy(share_C, share_C).sum()
    if settings.activation_weight > 0:
        activation = torch.stack([values.abs().mean() for values in features]).mean()
        loss = loss - settings.activation_weight * activation
    return loss


def last_linear(model: nn.Module) -> nn.Linear | None:
    """Return a model's last linear layer, in the order of its modules; None where it has none."""
    return next((module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear)), None)


def teacher_problem(teacher: nn.Module, settings: GeneratorSettings) -> str | None:
    """Say why the generator's loss cannot read a teacher; None when it can."""
    if settings.activation_weight == 0 or last_linear(teacher) is not None:
        return None
    return f"expected 0: the activation loss needs a linear layer, and {type(teacher).__name__} has none"


def make_generator(input_shape: tuple[int, ...], settings: GeneratorSettings) -> nn.Module:
    """Return a generator with freshly drawn weights: latent values [N, Z] to inputs [N, *input_shape].

    Images [C, H, W] of any size grow from a quarter of it by nearest upsampling and convolutions; feature
    vectors come from fully connected layers. The last layer is BatchNorm without a scale of its own: a batch
    has mean 0 and variance 1 in each channel or feature, as normalised inputs have.
    """
    width, latent = settings.width, settings.latent
    if len(input_shape) == 1:
        return nn.Sequential(
            *_dense(latent, 4 * width), *_dense(4 * width, 4 * width),
            nn.Linear(4 * width, input_shape[0]), nn.BatchNorm1d(input_shape[0], affine=False),
        )  # fmt: skip
    channels, height, wide = input_shape
    quarter = (math.ceil(height / 4), math.ceil(wide / 4))
    half = (math.ceil(height / 2), math.ceil(wide / 2))
    return nn.Sequential(
        nn.Linear(latent, 2 * width * quarter[0] * quarter[1]),
        nn.Unflatten(1, (2 * width, *quarter)),
        nn.BatchNorm2d(2 * width),
        *_grow(2 * width, 2 * width, half),
        *_grow(2 * width, width, (height, wide)),
        nn.Conv2d(width, channels, 3, padding=1),
        nn.Tanh(),
        nn.BatchNorm2d(channels, affine=False),
    )


def _dense(before: int, after: int) -> list[nn.Module]:
    return [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU(0.2)]


def _grow(before: int, after: int, size: tuple[int, int]) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, padding=1)
    return [nn.Upsample(size), convolution, nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]


def generate(
    teachers: Sequence[nn.Module],
    input_shape: tuple[int, ...],
    count: int,
    settings: GeneratorSettings,
    seed: int,
) -> torch.Tensor:
    """Train a generator against the teachers, and draw examples from it.

    Parameters
    ----------
    teachers
        At least one, on one device, where the generator is trained. They are not changed.
    input_shape
        Shape of one input: (channels, height, width) or (features,).
    count
        N, how many examples to draw, at least 1.
    settings
        Generator, training, weights of the loss.
    seed
        Derived seed of its weights and latent values, all drawn on the CPU.

    Returns
    -------
    torch.Tensor
        float32 [N, *input_shape] on the CPU, normalised.

    Raises
    ------
    KdfedError
        If there is no teacher, a teacher has no linear layer for the activation loss, or the examples are not
        finite.
    """
    if not teachers:
        raise KdfedError("expected at least one teacher to generate examples for, got none")
    for teacher in teachers:
        problem = teacher_problem(teacher, settings)
        if problem is not None:
            raise KdfedError(f"activation-weight of the generator: {problem}")
        spare_inputs(teacher)
    frozen = _Frozen(teachers)
    device = device_of(teachers[0])
    with torch_seed(derive(seed, "generator")):
        generator = make_generator(input_shape, settings).to(device)
    draw = torch_generator(seed, "latent")
    optimiser = torch.optim.Adam(generator.parameters(), lr=settings.lr)

    def examples() -> torch.Tensor:
        drawn: torch.Tensor = generator(
            torch.randn(settings.batch_size, settings.latent, generator=draw).to(device)
        )
        return drawn

    for _ in range(settings.steps):
        logits_KNC, features = frozen(examples())
        loss = generator_loss(logits_KNC, features, settings)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    # Whole batches in training mode, so that the last layer normalises as it did in training.
    with torch.no_grad():
        batches = [examples().cpu() for _ in range(math.ceil(count / settings.batch_size))]
    inputs = torch.cat(batches)[:count].contiguous()
    if not torch.isfinite(inputs).all():
        raise KdfedError("expected finite generated examples, got infinity or NaN; lower the generator's lr")
    return inputs


class _Frozen:
    """Frozen copies of teachers, which return their logits and what entered their last linear layers."""

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        self._teachers = [copy.deepcopy(teacher).eval().requires_grad_(False) for teacher in teachers]
        self._seen: list[torch.Tensor] = []
        for teacher in self._teachers:
            layer = last_linear(teacher)
            if layer is not None:
                layer.register_forward_pre_hook(self._see)

    def _see(self, layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self._seen.append(arguments[0])

    def __call__(self, inputs: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits [K, N, C], and one [N, ...] a teacher of what entered its last linear layer."""
        self._seen = []
        return torch.stack([teacher(inputs).float() for teacher in self._teachers]), self._seen
