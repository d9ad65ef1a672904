"""A cohort's training and logits against the plain loop, which is the definition."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from kdfed.closed_form.features import head_of
from kdfed.cohort import Trained, folded, levels, one_step, plan_for, predict_stack, stack_states
from kdfed.cohort import train_cohort as train_in_parts
from kdfed.cohort import training as cohort_training
from kdfed.cohort.folded import Stack
from kdfed.cohort.optimisers import StackedOptimiser
from kdfed.data import Examples
from kdfed.errors import KdfedError
from kdfed.fixed_norm import FixedBatchNorm
from kdfed.local import PLAIN, KDLocal, LocalLoss, MutualLocal, NTDLocal, PlainLocal, ProximalLocal
from kdfed.local.pairs import ModelPair
from kdfed.models import State, build_model, load_state, state_of
from kdfed.settings import ModelSettings, OptimiserSettings
from kdfed.setup import Setup
from kdfed.task import CLASSIFICATION, REGRESSION
from kdfed.train import TrainResult, fit, predict
from tests.setups import CPU

IMAGES, FEATURES = (1, 12, 12), (10,)
SIZES = [7, 1, 23, 12, 2, 10, 1, 31]
SEEDS = [11 * index + 5 for index in range(len(SIZES))]

MODELS: dict[str, tuple[ModelSettings, tuple[int, ...]]] = {
    "cnn": (ModelSettings(name="cnn"), IMAGES),
    "cnn group": (ModelSettings(name="cnn", options={"norm": "group"}), IMAGES),
    "cnn batch": (ModelSettings(name="cnn", options={"norm": "batch"}), IMAGES),
    "mlp": (ModelSettings(name="mlp", options={"hidden": (16, 8)}), FEATURES),
    "mlp on images": (ModelSettings(name="mlp", options={"hidden": (16,)}), IMAGES),
    "resnet8": (ModelSettings(name="resnet8", options={"width": 4}), (3, 16, 16)),
    "resnet18": (ModelSettings(name="resnet18", options={"width": 4}), (3, 16, 16)),
}
SGD = OptimiserSettings(epochs=1, batch_size=5, lr=0.01, momentum=0.9, weight_decay=0.001)


class Weighted(nn.Module):
    """Uses a parameter outside any layer: for torch.func, not for the registry."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))
        self.head = nn.Linear(10, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(inputs * self.scale)


class Branching(nn.Module):
    """Its path depends on the data, which neither tracing nor torch.func can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(inputs) if inputs.sum() > 0 else self.head(-inputs)


class Dropping(nn.Sequential):
    """Dropout on random features."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(10, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 3)
        self.two.weight = self.one.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(functional.relu(self.one(inputs))))


class Joining(nn.Module):
    """Features of two branches, and the features themselves, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(10, 4), nn.Linear(10, 6), nn.Linear(20, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        branches = [torch.tanh(self.one(inputs)), inputs, self.two(inputs)]
        return self.head(torch.cat(branches, dim=-1))


class JoiningImages(nn.Module):
    """Channels of an image and of a convolution side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(3 * 12 * 12, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([inputs, self.conv(inputs)], dim=1).flatten(1))


class Functional(nn.Module):
    """Functions and methods of tensors in place of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, groups=1)
        self.depth = nn.Conv2d(4, 8, 3, groups=2)
        self.head = nn.Linear(8 * 5 * 5, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = functional.avg_pool2d(torch.tanh(self.conv(inputs)), 2)
        return self.head(nn.functional.pad(self.depth(hidden), (0, 1, 0, 1)).flatten(1))


class Fixed(nn.Sequential):
    """BatchNorm, with and without a scale, whose statistics never change."""

    def __init__(self) -> None:
        norms = [nn.BatchNorm2d(4), nn.BatchNorm2d(6, affine=False)]
        for norm in norms:  # the same for every model, whatever its weights
            norm.running_mean = torch.linspace(-1, 1, norm.num_features)
            norm.running_var = torch.linspace(0.5, 2, norm.num_features)
        one, two = map(FixedBatchNorm, norms)
        super().__init__(
            nn.Conv2d(1, 4, 3), one, nn.ReLU(), nn.Conv2d(4, 6, 3, 2), two, nn.Flatten(), nn.Linear(96, 3)
        )


class FixedFeatures(nn.Sequential):
    """The same on features, which the registry does not know."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(10, 8), FixedBatchNorm(nn.BatchNorm1d(8)), nn.ReLU(), nn.Linear(8, 3))


OTHERS: dict[str, tuple[type[nn.Module], tuple[int, ...], str]] = {
    "weighted": (Weighted, FEATURES, "vmap"),
    "functional": (Functional, IMAGES, "vmap"),
    "joining": (Joining, FEATURES, "folded"),
    "fixed": (Fixed, IMAGES, "folded"),
    "fixed on features": (FixedFeatures, FEATURES, "vmap"),
    "joining images": (JoiningImages, IMAGES, "vmap"),
    "branching": (Branching, FEATURES, "loop"),
    "dropping": (Dropping, FEATURES, "loop"),
    "tied": (Tied, FEATURES, "loop"),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    if name in MODELS:
        settings, shape = MODELS[name]
        return build_model(settings, shape, 3, seed), shape
    kind, shape, _ = OTHERS[name]
    torch.manual_seed(seed)
    return kind(), shape


def examples_of(shape: tuple[int, ...], sizes: Sequence[int] = SIZES) -> Examples:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (sum(sizes),), generator=generator)
    inputs = torch.randn(len(labels), *shape, generator=generator)
    return Examples(inputs + labels.view(-1, *[1] * len(shape)), labels)


def double(examples: Examples) -> Examples:
    return Examples(examples.inputs.double(), examples.labels)


@dataclass
class Cohort:
    """Everybody's states [B, *shape] and results, in the order of the participants."""

    states: Stack
    results: list[TrainResult]

    def state(self, index: int) -> State:
        return {key: values[index] for key, values in self.states.items()}


def train_cohort(*args: Any, setup: Setup = CPU, **more: Any) -> Cohort:
    """Put the parts of a training together."""
    parts = list(train_in_parts(*args, setup=setup, **more))
    indices = [index for part in parts for index in part.indices]
    assert sorted(indices) == list(range(len(indices)))
    order = sorted(range(len(indices)), key=indices.__getitem__)
    states = {key: torch.cat([part.states[key] for part in parts])[order] for key in parts[0].states}
    results = [result for part in parts for result in part.results]
    return Cohort(states, [results[row] for row in order])


def loop(
    model: nn.Module,
    examples: Examples,
    settings: Any,
    loss: LocalLoss,
    starts: Any = None,
    sizes: Any = SIZES,
    only: Any = None,
) -> Cohort:
    """The slow twin: everybody alone."""
    states, results, end = [], [], 0
    for index, size in enumerate(sizes):
        own = copy.deepcopy(model)
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(only is None or name in only)
        if starts is not None:
            load_state(own, starts[index])
        part = Examples(examples.inputs[end : end + size], examples.labels[end : end + size])
        results.append(fit(own, part, settings, loss, SEEDS[index]))
        states.append(state_of(own))
        end += size
    return Cohort(stack_states(states), results)


def assert_agree(fast: Cohort, slow: Cohort, atol: float, rtol: float) -> None:
    assert list(fast.states) == list(slow.states)
    for key, values in slow.states.items():
        torch.testing.assert_close(fast.states[key], values, rtol=rtol, atol=atol)
    for one, two in zip(fast.results, slow.results, strict=True):
        assert (one.steps, one.examples) == (two.steps, two.examples)
        assert one.loss == pytest.approx(two.loss, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_one_round_agrees_with_the_loop_in_float32(name: str) -> None:
    model, shape = build(name)
    examples = examples_of(shape)
    before = state_of(model)
    fast = train_cohort(model, before, examples, SIZES, SGD, PLAIN, SEEDS)
    assert_agree(fast, loop(model, examples, SGD, PLAIN), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in state_of(model).items())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS, "weighted", "functional", "joining", "joining images", "fixed"])
def test_several_rounds_agree_with_the_loop_in_float64(name: str) -> None:
    model, shape = build(name)
    model.double()
    examples = double(examples_of(shape))
    settings = SGD.model_copy(update={"epochs": 2})
    fast = slow = None
    for _ in range(3):
        starts = None if fast is None else [fast.state(index) for index in range(len(SIZES))]
        fast = train_cohort(
            model, state_of(model) if starts is None else starts, examples, SIZES, settings, PLAIN, SEEDS
        )
        starts = None if slow is None else [slow.state(index) for index in range(len(SIZES))]
        slow = loop(model, examples, settings, PLAIN, starts)
    assert fast is not None
    assert slow is not None
    assert_agree(fast, slow, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (name, settings)
        for name in ("mlp", "cnn", "cnn batch")
        for settings in (
            OptimiserSettings(epochs=2, batch_size=5, lr=0.05),
            OptimiserSettings(epochs=2, batch_size=64, lr=0.05, momentum=0.5),
            OptimiserSettings(epochs=2, batch_size=1, lr=0.01),
        )
    ]
    + [
        # Not with BatchNorm: a bias before it has a gradient of rounding errors alone, which Adam scales up.
        (name, OptimiserSettings(epochs=3, batch_size=5, optimizer=kind, lr=0.01, weight_decay=0.01))
        for name in ("mlp", "cnn")
        for kind in ("adam", "adamw")
    ],
)
def test_every_optimiser_agrees_with_the_loop(name: str, settings: OptimiserSettings) -> None:
    model, shape = build(name)
    model.double()
    examples = double(examples_of(shape))
    fast = train_cohort(model, state_of(model), examples, SIZES, settings, PLAIN, SEEDS)
    assert_agree(fast, loop(model, examples, settings, PLAIN), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize(
    "settings",
    [
        PlainLocal(epochs=2, batch_size=5, lr=0.1),
        ProximalLocal(mode="proximal", mu=0.5, epochs=2, batch_size=5, lr=0.1),
        KDLocal(mode="kd", temperature=2.0, weight=0.4, epochs=2, batch_size=5, lr=0.1),
        NTDLocal(mode="ntd", temperature=2.0, beta=0.7, epochs=2, batch_size=5, lr=0.1),
    ],
)
@pytest.mark.parametrize("name", ["cnn", "mlp", "weighted"])
def test_every_mode_agrees_with_the_loop(name: str, settings: Any) -> None:
    model, shape = build(name)
    model.double()
    examples, loss = double(examples_of(shape)), settings.loss(lambda: model, CLASSIFICATION)
    fast = train_cohort(model, state_of(model), examples, SIZES, settings, loss, SEEDS)
    assert_agree(fast, loop(model, examples, settings, loss), atol=1e-12, rtol=1e-12)


IN_PART = {
    "momentum": PlainLocal(epochs=2, batch_size=5, lr=0.05, momentum=0.9, weight_decay=0.01),
    "one step": PlainLocal(epochs=1, batch_size=64, lr=0.05),
    "adamw": PlainLocal(epochs=2, batch_size=5, lr=0.01, optimizer="adamw", weight_decay=0.01),
    "proximal": ProximalLocal(mode="proximal", mu=0.5, epochs=2, batch_size=5, lr=0.05),
}
PARTS = [
    (name, part, how)
    for name in ("cnn", "cnn group", "cnn batch", "mlp", "resnet8", "weighted", "joining", "branching")
    for part in ("body", "head")
    for how in IN_PART
    if (name, part) not in (("cnn batch", "head"), ("branching", "body"))  # refused; there is no body
    # A bias before a norm has a gradient of rounding errors alone, which Adam scales up.
    and not (how == "adamw" and name in ("cnn group", "cnn batch", "resnet8"))
]


@pytest.mark.parametrize(("name", "part", "how"), PARTS)
def test_a_part_alone_agrees_with_the_loop_and_the_rest_keeps_its_bits(
    name: str, part: str, how: str
) -> None:
    settings = IN_PART[how]
    model, shape = build(name)
    place = head_of(model, shape)
    model.double()
    examples, start = double(examples_of(shape)), state_of(model)
    trained = frozenset(place.trained(start, part)) & {key for key, _ in model.named_parameters()}
    loss = settings.loss(lambda: model, CLASSIFICATION)
    slow = loop(model, examples, settings, loss, only=trained)
    for sums in (False, True):
        fast = train_cohort(model, start, examples, SIZES, settings, loss, SEEDS, only=trained, sums=sums)
        assert_agree(fast, slow, atol=1e-11, rtol=1e-11)
        for key, values in fast.states.items():
            moved = not torch.equal(values, start[key].expand_as(values))
            assert moved == (key in place.trained(start, part)), key


PAIRS = [
    ("cnn", "cnn", "folded"),
    ("cnn group", "mlp on images", "folded"),
    ("cnn", "cnn batch", "folded"),
    ("mlp on images", "functional", "vmap"),
    ("mlp", "weighted", "vmap"),
    ("mlp", "branching", "loop"),
]


@pytest.mark.parametrize(("one", "other", "level"), PAIRS)
def test_pairs_of_models_agree_with_the_loop(one: str, other: str, level: str) -> None:
    (received, shape), (personal, _) = build(one), build(other, 1)
    settings = MutualLocal(mode="mutual", alpha=0.3, beta=0.6, epochs=2, batch_size=5, lr=0.05)
    loss, exact = settings.loss(lambda: received, CLASSIFICATION), ModelPair(received, personal)
    assert plan_for(exact, shape, 5).level == level
    starts = [state_of(ModelPair(received, build(other, seed)[0])) for seed in range(len(SIZES))]
    examples = examples_of(shape)
    rounded = train_cohort(exact, starts, examples, SIZES, SGD, loss, SEEDS)
    assert_agree(rounded, loop(exact, examples, SGD, loss, starts), atol=1e-5, rtol=1e-5)
    exact = copy.deepcopy(exact).double()
    starts = [
        {key: value.double() if value.is_floating_point() else value for key, value in start.items()}
        for start in starts
    ]
    fast = train_cohort(exact, starts, double(examples), SIZES, settings, loss, SEEDS)
    assert_agree(fast, loop(exact, double(examples), settings, loss, starts), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        PlainLocal(epochs=2, batch_size=5, lr=0.02),
        ProximalLocal(mode="proximal", mu=0.5, epochs=2, batch_size=5, lr=0.02),
        KDLocal(mode="kd", temperature=1.0, weight=0.4, epochs=2, batch_size=5, lr=0.02),
    ],
)
@pytest.mark.parametrize(("name", "level"), [("mlp", "folded"), ("weighted", "vmap"), ("branching", "loop")])
def test_a_regression_agrees_with_the_loop_on_every_level(name: str, level: str, settings: Any) -> None:
    model: Any = build_model(MODELS["mlp"][0], FEATURES, 1, 0) if name == "mlp" else build(name)[0]
    if name != "mlp":
        model.head = nn.Linear(10, 1)
    model.double()
    inputs = torch.randn(sum(SIZES), 10, generator=torch.Generator().manual_seed(1)).double()
    examples = Examples(inputs, inputs[:, 0] - 0.5 * inputs[:, 1])
    assert plan_for(model, FEATURES, 5).level == level
    loss = settings.loss(lambda: model, REGRESSION)
    fast = train_cohort(model, state_of(model), examples, SIZES, settings, loss, SEEDS)
    assert_agree(fast, loop(model, examples, settings, loss), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "level"), [(n, "folded") for n in MODELS] + [(n, o[2]) for n, o in OTHERS.items()]
)
def test_the_level_is_chosen_by_rule(name: str, level: str) -> None:
    model, shape = build(name)
    plan = plan_for(model, shape, 5)
    assert plan.level == level, plan.why
    assert plan is plan_for(model, shape, 5)


@pytest.mark.slow
def test_a_heavy_step_is_not_folded_on_a_cpu() -> None:
    model = build_model(ModelSettings(name="resnet18"), (3, 32, 32), 10, 0)
    plan = plan_for(model, (3, 32, 32), 32)
    assert plan.level == "loop"
    assert "multiply-adds" in plan.why


def test_the_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    model, shape = build("dropping")
    with caplog.at_level("INFO", logger="kdfed"):
        plan_for(model, shape)
        plan_for(model, shape)
    (record,) = caplog.records
    assert "cohorts of Dropping: loop" in record.getMessage()
    assert "dropout" in record.getMessage()


def test_participants_start_from_weights_of_their_own() -> None:
    model, shape = build("cnn")
    examples = examples_of(shape)
    starts = [state_of(build("cnn", seed)[0]) for seed in range(len(SIZES))]
    fast = train_cohort(model, starts, examples, SIZES, SGD, PLAIN, SEEDS)
    assert_agree(fast, loop(model, examples, SGD, PLAIN, starts), atol=1e-5, rtol=1e-5)


def test_order_within_the_cohort_changes_nothing_but_the_order() -> None:
    """Participants are sorted by their examples: whoever holds as many lies in the order given."""
    model, shape = build("mlp")
    examples = examples_of(shape)
    one = train_cohort(model, state_of(model), examples, SIZES, SGD, PLAIN, SEEDS)
    parts = list(zip(examples.inputs.split(SIZES), examples.labels.split(SIZES), SIZES, SEEDS, strict=True))
    inputs, labels, sizes, seeds = zip(*reversed(parts), strict=True)
    turned = Examples(torch.cat(inputs), torch.cat(labels))
    other = train_cohort(model, state_of(model), turned, sizes, SGD, PLAIN, seeds)
    for index in range(len(SIZES)):
        for key, values in one.state(index).items():
            torch.testing.assert_close(other.state(len(SIZES) - 1 - index)[key], values, rtol=1e-5, atol=1e-6)


def test_narrow_folds_agree_with_one_wide_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = build("cnn")
    examples = examples_of(shape)
    wide = train_cohort(model, state_of(model), examples, SIZES, SGD, PLAIN, SEEDS)
    monkeypatch.setitem(cohort_training.plan_for.__globals__["FOLD_BYTES"], "cpu", 1)
    narrow = train_cohort(model, state_of(model), examples, SIZES, SGD, PLAIN, SEEDS)
    for key, values in wide.states.items():
        torch.testing.assert_close(narrow.states[key], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_folds_are_cut_where_padding_and_steps_cost_least(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every way to cut between participants with unequal numbers of examples."""
    monkeypatch.setitem(levels.MOST_FOLDED, "cpu", 6)
    model, shape = build("mlp")
    plan, cpu, batch = plan_for(model, shape, 4), torch.device("cpu"), 4
    generator = torch.Generator().manual_seed(seed)
    sizes = sorted(torch.randint(1, 15, (9,), generator=generator).tolist(), reverse=True)
    monkeypatch.setitem(levels.STEP_OVERHEAD, "cpu", (seed + 1) * 3 * plan.cost.multiply_adds)

    def cost(fold: Sequence[int]) -> float:
        rows, steps = 0, -(-fold[0] // batch)
        for step in range(steps):
            batches = [min(batch, size - step * batch) for size in fold if size > step * batch]
            rows += len(batches) * max(batches)
        return rows + (seed + 1) * 3 * steps

    indices = [index for index in range(1, len(sizes)) if sizes[index] != sizes[index - 1]]
    every = []
    for count in range(len(indices) + 1):
        for chosen in itertools.combinations(indices, count):
            parts = [sizes[a:b] for a, b in itertools.pairwise([0, *chosen, len(sizes)])]
            if all(len(part) <= 6 for part in parts):
                every.append(sum(map(cost, parts)))
    cuts = plan.folds(sizes, batch, cpu)
    assert [size for cut in cuts for size in sizes[cut]] == sizes
    assert sum(cost(sizes[cut]) for cut in cuts) == pytest.approx(min(every))


def test_many_equals_are_cut_into_even_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(levels.MOST_FOLDED, "cpu", 6)
    model, shape = build("mlp")
    cuts = plan_for(model, shape, 4).folds([3] * 20, 4, torch.device("cpu"))
    assert [cut.stop - cut.start for cut in cuts] == [5, 5, 5, 5]


def test_one_participant_that_diverges_costs_only_itself() -> None:
    model, shape = build("cnn")
    examples = examples_of(shape)
    examples.inputs[3] = float("nan")  # of the first participant
    trained = train_cohort(model, state_of(model), examples, SIZES, SGD, PLAIN, SEEDS)
    finite = [all(bool(v.isfinite().all()) for v in trained.state(p).values()) for p in range(len(SIZES))]
    assert finite == [False] + [True] * (len(SIZES) - 1)


def test_bfloat16_keeps_weights_in_float32_and_stays_near() -> None:
    model, shape = build("cnn")
    examples = examples_of(shape)
    exact = train_cohort(model, state_of(model), examples, SIZES, SGD, PLAIN, SEEDS)
    half = train_cohort(
        model, state_of(model), examples, SIZES, SGD, PLAIN, SEEDS, setup=replace(CPU, precision="bfloat16")
    )
    for key, values in exact.states.items():
        assert half.states[key].dtype == torch.float32
        torch.testing.assert_close(half.states[key], values, rtol=0.1, atol=0.05)
    assert any(not torch.equal(half.states[key], exact.states[key]) for key in exact.states)


@pytest.mark.parametrize("name", ["cnn", "weighted", "branching"])
def test_examples_that_all_share_are_there_once_and_may_have_soft_targets(name: str) -> None:
    model, shape = build(name)
    shared = examples_of(shape, [13])
    soft = Examples(shared.inputs, torch.randn(13, 3, generator=torch.Generator().manual_seed(2)))
    loss = LocalLoss(lambda inputs, logits, targets: (logits - targets).abs().mean(1))
    copies = Examples(soft.inputs.repeat(4, *[1] * len(shape)), soft.labels.repeat(4, 1))
    fast = train_cohort(model, state_of(model), soft, [13] * 4, SGD, loss, SEEDS[:4], shared=True)
    assert_agree(fast, loop(model, copies, SGD, loss, sizes=[13] * 4), atol=1e-5, rtol=1e-5)


def test_shared_examples_must_be_everybodys() -> None:
    model, shape = build("mlp")
    for sizes in ([3, 2], [2, 2]):
        with pytest.raises(KdfedError, match="3 in all"):
            train_cohort(
                model, state_of(model), examples_of(shape, [3]), sizes, SGD, PLAIN, [1, 2], shared=True
            )


def test_a_participant_without_examples_is_refused() -> None:
    model, shape = build("mlp")
    with pytest.raises(KdfedError, match="at least one example of each participant, 3 in all"):
        train_cohort(model, state_of(model), examples_of(shape, [3]), [3, 0], SGD, PLAIN, [1, 2])


# ----------------------------------------------------------------------------- sums


ONE_STEP = {"epochs": 1, "batch_size": 12}
"""With it six of eight participants make one step, and with 64 all do."""


def sums_of(parts: Sequence[Trained]) -> State:
    """Add up what came as sums, and single states times their numbers of examples."""
    total: State = {}
    for part in parts:
        own = part.sums or {
            key: sum(row * result.examples for row, result in zip(values.double(), part.results, strict=True))
            for key, values in part.states.items()
        }
        total = {key: total.get(key, 0) + value for key, value in own.items()}
    return total


def slow_sums(slow: Cohort) -> State:
    weights = torch.tensor([result.examples for result in slow.results]).double()
    return {
        key: (weights @ values.double().flatten(1)).view(values.shape[1:])
        for key, values in slow.states.items()
    }


MODES = [
    SGD.model_copy(update=ONE_STEP),
    ProximalLocal(mode="proximal", mu=0.5, lr=0.1, weight_decay=0.01, **ONE_STEP),
    KDLocal(mode="kd", temperature=2.0, weight=0.4, lr=0.1, **ONE_STEP),
    NTDLocal(mode="ntd", temperature=2.0, beta=0.7, lr=0.1, **ONE_STEP),
]


@pytest.mark.parametrize("batch_size", [12, 64])
@pytest.mark.parametrize("settings", MODES)
@pytest.mark.parametrize("name", ["cnn", "cnn group", "mlp", "mlp on images", "resnet8", "resnet18"])
def test_sums_of_those_who_make_one_step_agree_with_the_loop(
    name: str, settings: Any, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdfed.cohort.one_step.LEAST_EXAMPLES", 8)  # several passes
    monkeypatch.setitem(one_step.PASS_BYTES, "cpu", 1)
    (model, shape), settings = build(name), settings.model_copy(update={"batch_size": batch_size})
    teacher = build(name, 1)[0].double()
    examples = double(examples_of(shape))
    loss = PLAIN if type(settings) is OptimiserSettings else settings.loss(lambda: teacher, CLASSIFICATION)
    model.double()
    parts = list(
        train_in_parts(model, state_of(model), examples, SIZES, settings, loss, SEEDS, sums=True, setup=CPU)
    )
    slow = loop(model, examples, settings, loss)
    for key, value in slow_sums(slow).items():
        torch.testing.assert_close(sums_of(parts)[key], value, rtol=1e-12, atol=1e-12)
    (together,) = (part for part in parts if part.sums)
    assert together.indices == [index for index, size in enumerate(SIZES) if size <= batch_size]
    assert not together.states
    for part in parts:
        for index, result in zip(part.indices, part.results, strict=True):
            assert (result.steps, result.examples) == (slow.results[index].steps, SIZES[index])
            assert result.loss == pytest.approx(slow.results[index].loss, rel=1e-12)


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet8", "resnet18"])
def test_sums_of_one_step_agree_with_the_loop_in_float32(name: str) -> None:
    """Strided 1x1 convolutions of four channels, as the ResNets have them here, must not end the process."""
    (model, shape), settings = build(name), MODES[0]
    examples = examples_of(shape)
    parts = list(
        train_in_parts(model, state_of(model), examples, SIZES, settings, PLAIN, SEEDS, sums=True, setup=CPU)
    )
    for key, value in slow_sums(loop(model, examples, settings, PLAIN)).items():
        torch.testing.assert_close(sums_of(parts)[key] / sum(SIZES), value / sum(SIZES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cnn batch", {}),  # examples of a batch see each other
        ("dropping", {}),  # everybody draws numbers of its own
        ("weighted", {}),  # nobody knows
        ("mlp", {"optimizer": "adam"}),  # no sum of gradients
        ("mlp", {"epochs": 2}),
    ],
)
def test_nobody_is_summed_where_one_step_is_no_sum_of_gradients(name: str, changes: dict[str, Any]) -> None:
    model, shape = build(name)
    settings = SGD.model_copy(update=ONE_STEP | changes)
    parts = train_in_parts(
        model, state_of(model), examples_of(shape), SIZES, settings, PLAIN, SEEDS, sums=True, setup=CPU
    )
    assert not any(part.sums for part in parts)


def test_nobody_is_summed_who_starts_from_weights_of_its_own() -> None:
    model, shape = build("mlp")
    starts = [state_of(model)] * len(SIZES)
    parts = train_in_parts(
        model, starts, examples_of(shape), SIZES, MODES[0], PLAIN, SEEDS, sums=True, setup=CPU
    )
    assert not any(part.sums for part in parts)


@pytest.mark.parametrize(("value", "lr"), [(float("nan"), 0.01), (float("inf"), 0.01), (1e36, 1e4)])
def test_where_a_sum_would_not_be_finite_everybody_is_looked_at(value: float, lr: float) -> None:
    """The last one's weights are beyond float32, though its gradient and the sum in float64 are not."""
    model, shape = build("mlp")
    examples, settings = examples_of(shape), MODES[0].model_copy(update={"lr": lr})
    examples.inputs[:7] = value  # of the first participant
    parts = list(
        train_in_parts(model, state_of(model), examples, SIZES, settings, PLAIN, SEEDS, sums=True, setup=CPU)
    )
    assert not any(part.sums for part in parts)
    assert sorted(index for part in parts for index in part.indices) == list(range(len(SIZES)))


class Idle(nn.Sequential):
    """One of its weights is never used."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(10, 3))
        self.spare = nn.Linear(2, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self[0](inputs)


def test_an_unused_weight_is_left_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "HEAVY_STEP", 0.0)
    model = Idle()
    parts = list(
        train_in_parts(
            model, state_of(model), examples_of(FEATURES), SIZES, MODES[0], PLAIN, SEEDS, sums=True, setup=CPU
        )
    )
    assert not any(part.sums for part in parts)
    assert len(parts) == len(SIZES)


def test_one_step_makes_no_copy_of_the_weights_for_each_participant() -> None:
    model = build_model(ModelSettings(name="mlp", options={"hidden": (500,)}), (100,), 2, 0)
    examples = examples_of((100,), [2] * 100)
    examples.labels.clamp_(max=1)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        (part,) = train_in_parts(
            model, state_of(model), examples, [2] * 100, MODES[0], PLAIN, range(100), sums=True, setup=CPU
        )
    assert part.sums
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= 8 * 500 * 200  # the gradient in float64, or the hidden layer's outputs in float32


# ----------------------------------------------------------------------------- steps


class Turned(nn.Module):
    """Asks for the layout that convolutions want."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 10 * 10, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.conv(inputs.contiguous(memory_format=torch.channels_last))
        return self.head(hidden.contiguous().flatten(1))


def test_a_model_that_turns_its_images_is_folded() -> None:
    model, examples = Turned(), examples_of(IMAGES)
    assert plan_for(model, IMAGES, 5).level == "folded"
    fast = train_cohort(model, state_of(model), examples, SIZES, SGD, PLAIN, SEEDS)
    assert_agree(fast, loop(model, examples, SGD, PLAIN), atol=1e-5, rtol=1e-5)


def test_images_that_a_linear_layer_reads_are_not_folded_into_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folds: list[torch.Size] = []
    fold = folded._as_image
    monkeypatch.setattr(folded, "_as_image", lambda inputs: folds.append(inputs.shape) or fold(inputs))
    for name, expected in (("mlp on images", 0), ("cnn", 1)):
        model, shape = build(name)
        plan_for(model, shape, 64)
        folds.clear()
        stack = {key: torch.stack([value] * 3) for key, value in state_of(model).items()}
        plan_for(model, shape, 64).forward(stack, torch.randn(3, 5, *shape), norm_training=False)
        assert len(folds) == expected


def test_one_pass_of_sgd_is_taken_and_agrees_with_three(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(4, *shape, generator=generator) for shape in ((8, 3, 5, 5), (3,), (7, 61))]
    steps = [[torch.randn(value.shape, generator=generator) for value in start] for _ in range(3)]
    settings, passes = SGD.model_copy(update={"weight_decay": 0.0}), []
    one_pass = torch._fused_sgd_

    def counted(*tensors: Any, **options: Any) -> None:
        passes.append(len(tensors[0]))
        one_pass(*tensors, **options)

    monkeypatch.setattr(torch, "_fused_sgd_", counted)
    fused = StackedOptimiser([value.clone() for value in start], settings, steps=3)
    for step, (gradients, active) in enumerate(zip(steps, (4, 4, 2), strict=True)):
        fused.step([gradient[:active].clone() for gradient in gradients], step, slice(0, active))
    assert passes == [3, 3]  # every weight, and the first step has no momentum
    parameters, buffers = [value.clone() for value in start], [gradient.clone() for gradient in steps[0]]
    for step, (gradients, active) in enumerate(zip(steps, (4, 4, 2), strict=True)):
        for value, buffer, gradient in zip(parameters, buffers, gradients, strict=True):
            if step:
                buffer[:active].mul_(settings.momentum).add_(gradient[:active])
            value[:active].add_(buffer[:active], alpha=-settings.lr)
    for value, own in zip(fused.parameters, parameters, strict=True):
        # A CPU rounds the ends of a tensor once less.
        torch.testing.assert_close(value, own, rtol=1e-6, atol=1e-6)


def test_a_channels_last_gradient_is_stepped_by_place_and_not_by_memory() -> None:
    start, gradient = torch.zeros(2, 4, 3, 5, 5), torch.randn(2, 4, 3, 5, 5)
    optimiser = StackedOptimiser([start], SGD.model_copy(update={"weight_decay": 0.0}), steps=2)
    turned = gradient.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert turned.stride() != gradient.stride()
    optimiser.step([gradient.clone()], 0, slice(0, 2))
    optimiser.step([turned], 1, slice(0, 2))
    torch.testing.assert_close(optimiser.parameters[0], -SGD.lr * (1 + 1 + SGD.momentum) * gradient)


# ----------------------------------------------------------------------------- logits


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_logits_of_many_models_agree_with_each_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdfed.cohort.predicting.BATCH", 8)
    models = [build(name, seed)[0] for seed in range(5)]
    inputs = examples_of(build(name)[1], [21]).inputs
    logits = predict_stack(models[0], stack_states([state_of(model) for model in models]), inputs)
    slow = torch.stack([predict(model, inputs) for model in models])
    torch.testing.assert_close(logits, slow, rtol=1e-4, atol=1e-5)
    assert models[0].training


@pytest.mark.parametrize(("one", "other", "level"), PAIRS)
def test_logits_of_pairs_are_those_of_both_models(one: str, other: str, level: str) -> None:
    models = [(build(one, seed)[0], build(other, seed + 9)[0]) for seed in range(3)]
    pairs, inputs = [ModelPair(*both) for both in models], examples_of(build(one)[1], [21]).inputs
    logits = predict_stack(pairs[0], stack_states([state_of(pair) for pair in pairs]), inputs)
    slow = [torch.cat([predict(model, inputs) for model in both], dim=1) for both in models]
    torch.testing.assert_close(logits, torch.stack(slow), rtol=1e-4, atol=1e-5)


def test_inputs_are_never_copied_for_each_model() -> None:
    """The largest tensor made is an output of the models, not K copies of the inputs."""
    model = build_model(ModelSettings(name="mlp", options={"hidden": (2,)}), (1000,), 2, 0)
    stack = stack_states([state_of(model)] * 50)
    inputs = torch.randn(64, 1000)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        predict_stack(model, stack, inputs)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 50 * inputs.numel() * 4 / 2


# ----------------------------------------------------------------------------- what the self-test sees


def mixed(forward: Any) -> Any:
    """Return a pass of many participants that gives each the weights of the next."""

    def run(plan: levels.CohortPlan, state: Stack, *inputs: Any, **keywords: Any) -> torch.Tensor:
        return forward(plan, {key: values.roll(1, 0) for key, values in state.items()}, *inputs, **keywords)

    return run


@pytest.mark.parametrize("method", ["forward", "forward_shared"])
def test_a_fold_that_mixes_participants_up_is_not_taken(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(levels.CohortPlan, method, mixed(getattr(levels.CohortPlan, method)))
    plan = plan_for(build_model(MODELS["cnn"][0], IMAGES, 3, seed=0), IMAGES)
    assert plan.level == "loop"
    assert "other logits than one after the other" in plan.why


def test_the_self_test_tells_participants_apart_whose_head_begins_at_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model(MODELS["mlp"][0], FEATURES, 3, seed=0)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    monkeypatch.setattr(levels.CohortPlan, "forward", mixed(levels.CohortPlan.forward))
    assert plan_for(model, FEATURES).level == "loop"


class Centred(nn.Module):
    """Its logits depend on the whole batch, which padding would change."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(inputs - inputs.mean(0))


class Moving(nn.Module):
    """Keeps a running mean, which torch.func would lose."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, 3)
        self.register_buffer("mean", torch.zeros(10))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)
        return self.head(inputs - self.mean)


@pytest.mark.parametrize("kind", [Centred, Moving])
def test_what_padding_or_stacking_would_change_is_looped_like_the_loop(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind()
    start = state_of(model)
    inputs, labels = torch.randn(11, 10), torch.arange(11) % 3
    trained = train_cohort(model, start, Examples(inputs, labels), [7, 4], SGD, PLAIN, [1, 2])
    for index, part in enumerate((slice(0, 7), slice(7, 11))):
        own = copy.deepcopy(model)
        fit(own, Examples(inputs[part], labels[part]), SGD, PLAIN, [1, 2][index])
        for key, values in state_of(own).items():
            torch.testing.assert_close(trained.state(index)[key], values)


@pytest.mark.parametrize("name", ["cnn", "functional"])
def test_a_plan_does_not_keep_its_model_alive(name: str) -> None:
    model = Weighted() if name == "functional" else build_model(MODELS[name][0], IMAGES, 3, seed=0)
    plan_for(model, FEATURES if name == "functional" else IMAGES)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# ----------------------------------------------------------------------------- inputs that others read


class Scaling(nn.Module):
    """Writes into its inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(10, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(inputs))


class Scale(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mul_(0.5)


class Shift(nn.Module):
    """Writes only where the values ask for it."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.min() < 0:
            inputs -= inputs.min()
        return inputs


class Activation(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(inputs, 0.2, True)


WRITING = [nn.ReLU(inplace=True), Scale(), nn.Dropout(0.5, inplace=True), Shift(), Activation()]


@pytest.mark.parametrize("layer", WRITING)
@pytest.mark.parametrize("mode", ["plain", "kd"])
def test_inputs_stay_as_they_are_whatever_a_model_does_with_them(layer: nn.Module, mode: str) -> None:
    model = Scaling(copy.deepcopy(layer))
    inputs, labels = torch.randn(9, 10), torch.arange(9) % 3
    before, examples = inputs.clone(), Examples(inputs, labels)
    settings = KDLocal(mode="kd", weight=0.5, temperature=2.0) if mode == "kd" else PlainLocal()
    loss = settings.loss(lambda: model, CLASSIFICATION)
    predict(model, inputs)
    fit(copy.deepcopy(model), examples, SGD, loss, 0)
    predict_stack(model, stack_states([state_of(model)] * 3), inputs)
    for sums in (False, True):
        one = OptimiserSettings(epochs=1, batch_size=9, lr=0.1)
        list(
            train_in_parts(
                model, state_of(model), examples, [4, 3, 2], one, loss, [1, 2, 3], sums=sums, setup=CPU
            )
        )
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("layer", WRITING)
def test_halves_of_a_pair_read_the_inputs_as_they_are_whatever_the_other_does(layer: nn.Module) -> None:
    both = [Scaling(copy.deepcopy(layer)).eval() for _ in range(2)]
    inputs = torch.randn(9, 10)
    before = inputs.clone()
    expected = torch.cat([model(inputs.clone()) for model in both], dim=1)
    pair = ModelPair(*both)
    torch.testing.assert_close(predict(pair, inputs), expected)
    stack = stack_states([state_of(pair)] * 3)
    torch.testing.assert_close(predict_stack(pair, stack, inputs), expected.expand(3, -1, -1))
    assert torch.equal(inputs, before)


def test_a_foreign_model_of_registered_layers_is_folded_although_it_is_given_copies() -> None:
    model = Scaling(nn.ReLU())
    assert plan_for(model, (10,)).level == "folded"
    model.layer.register_forward_pre_hook(lambda module, inputs: None)
    assert plan_for(copy.deepcopy(model), (10,)).level != "folded"


@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "stride", "padding"),
    [
        (2, 5, (3, 3), (1, 1), (1, 1)),
        (1, 2, (1, 1), (2, 2), (0, 0)),
        (3, 4, (5, 5), (2, 2), (2, 2)),
        (2, 3, (3, 2), (2, 3), (0, 1)),  # whose last rows and columns no window reaches
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_stacked_convolution_is_each_participants_own(
    channels: int, filters: int, kernel: Any, stride: Any, padding: Any, bias: bool
) -> None:
    """What a GPU computes in place of grouped convolutions, with its gradients; in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    count, participants = 4, 3

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).requires_grad_()

    images, weight = (
        draw(count, participants * channels, 9, 11),
        draw(participants, filters, channels, *kernel),
    )
    biases = draw(participants, filters) if bias else None
    found = folded.stacked_conv(images, weight, biases, stride, padding)
    slow = torch.cat(
        [
            functional.conv2d(own, weight[b], None if biases is None else biases[b], stride, padding)
            for b, own in enumerate(images.chunk(participants, dim=1))
        ],
        dim=1,
    )
    torch.testing.assert_close(found, slow)
    direction = draw(*slow.shape).detach()
    leaves = [images, weight, *([] if biases is None else [biases])]
    gradients = (torch.autograd.grad((one * direction).sum(), leaves) for one in (found, slow))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
