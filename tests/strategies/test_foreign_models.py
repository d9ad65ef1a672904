"""Models that people bring: each trains under every strategy and on every level, or is refused at once."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from kdfed.config import Experiment
from kdfed.data import prepare
from kdfed.errors import ConfigError, RunError
from kdfed.models import State, build_model, load_state, state_of
from kdfed.preflight import check_data
from kdfed.settings import ModelSettings
from simulations.server_app import held_out_data, server_data

Build = Callable[..., Experiment]
Run = Callable[..., Any]

FEATURES, CLASSES = 6, 3
DATA = f"synthetic:examples=160,classes={CLASSES},shape={FEATURES}"


class Net(nn.Module):
    """Two layers; those below differ in what they hold, or do, beside them."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(*input_shape, 8), nn.Linear(8, classes)
        self.more()

    def more(self) -> None:
        """Add what is special."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(inputs)))


def buffered(values: Callable[[], torch.Tensor], *, persistent: bool = True) -> type[Net]:
    class Buffered(Net):
        def more(self) -> None:
            self.register_buffer("extra", values(), persistent=persistent)

    return Buffered


class BoolMask(Net):
    def more(self) -> None:
        self.register_buffer("mask", torch.arange(8) % 4 > 0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(inputs)).where(self.mask, 0))


class Attention(Net):
    """A mask of minus infinity, as attention has it."""

    def more(self) -> None:
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.body(inputs)
        scores = hidden.unsqueeze(2) * hidden.unsqueeze(1) + self.mask
        return self.head((scores.softmax(2) @ hidden.unsqueeze(2)).squeeze(2))


class Tied(Net):
    def more(self) -> None:
        self.middle, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.middle.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.middle(self.body(inputs))))


class Frozen(Net):
    def more(self) -> None:
        self.body.requires_grad_(False)


class Unused(Net):
    def more(self) -> None:
        self.spare = nn.Parameter(torch.ones(3))


class Odd(Net):
    """Parameters without dimensions, and without numbers."""

    def more(self) -> None:
        self.scale, self.empty = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.ones(0, 4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) * self.scale + self.empty.sum()


class Lazy(Net):
    def more(self) -> None:
        self.body = nn.LazyLinear(8)


class Views(Net):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs).unsqueeze(1).expand(-1, 2, -1)[:, 0]


class Dropping(Net):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.dropout(super().forward(inputs), 0.2, self.training)


class OldWeightNorm(Net):
    def more(self) -> None:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(self.body)


class WeightNorm(Net):
    def more(self) -> None:
        nn.utils.parametrizations.weight_norm(self.body)


class OldSpectralNorm(Net):
    def more(self) -> None:
        nn.utils.spectral_norm(self.body)


class SpectralNorm(Net):
    def more(self) -> None:
        nn.utils.parametrizations.spectral_norm(self.body)


class Remembering(Net):
    """Keeps a tensor of its last pass as an attribute."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.last = self.body(inputs)
        return self.head(torch.relu(self.last))


class Counting(Net):
    """A buffer of whole numbers that counts, and one of floats that is replaced."""

    def more(self) -> None:
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.body(inputs)
        if self.training:
            self.seen += 1
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        return self.head(torch.relu(hidden - self.mean))


class Halved(Net):
    """Writes into its inputs."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs.mul_(0.5))


class Shifted(Net):
    """Writes into its inputs where their values ask for it."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.min() < 0:
            inputs -= inputs.min()
        return super().forward(inputs)


class Permuting(Net):
    """Whole numbers drawn at random, which are used."""

    def more(self) -> None:
        self.register_buffer("order", torch.randperm(8))
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(inputs) * self.scale)[:, self.order])


TRAINED: dict[str, type[Net]] = {
    "BoolMask": BoolMask, "Attention": Attention, "Tied": Tied, "Frozen": Frozen, "Unused": Unused,
    "Odd": Odd, "Lazy": Lazy, "Views": Views, "Dropping": Dropping, "OldWeightNorm": OldWeightNorm,
    "WeightNorm": WeightNorm, "OldSpectralNorm": OldSpectralNorm, "SpectralNorm": SpectralNorm,
    "Remembering": Remembering, "Counting": Counting, "Halved": Halved, "Permuting": Permuting,
    "Complex": buffered(lambda: torch.tensor([1 + 2j])), "Half": buffered(lambda: torch.ones(2).half()),
    "BFloat16": buffered(lambda: torch.ones(2).bfloat16()),
    "NotANumber": buffered(lambda: torch.tensor(torch.nan)),
    "Huge": buffered(lambda: torch.tensor([2**60 + 1])), "Least": buffered(lambda: torch.full((2,), -3.4e38)),
    "Double": type("Double", (Net,), {
        "more": lambda self: self.double(),
        "forward": lambda self, inputs: Net.forward(self, inputs.double()),
    }),
    "NotPersistent": buffered(lambda: torch.ones(2), persistent=False),
}  # fmt: skip
STRATEGIES = ("fedavg", "fedavgm", "fedadam", "feddf", "fedmd", "ds_fl", "krum", "fedmedian")
AWKWARD = ("BoolMask", "Odd", "Counting")  # to add, to subtract, to measure
CROSSED = [
    pytest.param(
        name,
        strategy,
        marks=[] if name in AWKWARD or strategy in ("fedadam", "feddf") else [pytest.mark.slow],
    )
    for name in TRAINED
    for strategy in STRATEGIES
]
DISTILLED = {"epochs": 1, "batch-size": 32}


@pytest.fixture(autouse=True)
def _zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("foreign_zoo")
    vars(module).update(TRAINED | {name: builder for name, (builder, _) in REFUSED.items()})
    monkeypatch.setitem(sys.modules, "foreign_zoo", module)


def experiment(tiny: Build, name: str, **changes: Any) -> Experiment:
    small = {
        "data": {"source": DATA}, "partition.participants": 3, "rounds": {"horizon": 2},
        "local.batch-size": 16, "arms": {"cold": {"start": "random"}},
        "model": {"name": f"foreign_zoo:{name}"},
    }  # fmt: skip
    return tiny(**small | {"targets": [0.99]} | changes)


def server(strategy: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"strategy": strategy, "cohort-size": 2}
    if strategy in ("feddf", "fedmd", "ds_fl"):
        settings["distillation"] = DISTILLED
    if strategy in ("fedmd", "ds_fl"):
        settings["digest"] = DISTILLED
    return {"server": settings}


@pytest.mark.parametrize(("name", "strategy"), CROSSED)
def test_a_foreign_model_trains_under_every_strategy(
    tiny: Build, run_arm: Run, name: str, strategy: str
) -> None:
    chosen = experiment(tiny, name, **server(strategy))
    assert check_data(chosen) == []
    result = run_arm(chosen)
    assert [record.answered for record in result.records[1:]] == [3, 3]
    assert all(record.absent == () for record in result.records)


def built(name: str, seed: int = 0) -> nn.Module:
    return build_model(ModelSettings(name=f"foreign_zoo:{name}"), (FEATURES,), CLASSES, seed)


class NoParameters(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[:, : self.classes]


class Auxiliary(Net):
    def forward(self, inputs: torch.Tensor) -> Any:
        logits = super().forward(inputs)
        return (logits, logits) if self.training else logits


class Detached(Net):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs).detach()


class Flag(Net):
    """A flag that training sets, as layers have it that look at their first batch."""

    def more(self) -> None:
        self.register_buffer("started", torch.tensor(False))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.started |= self.training
        return super().forward(inputs)


class RandomMask(Net):
    def more(self) -> None:
        self.register_buffer("mask", torch.rand(64) > 0.5)


class RandomTensor(Net):
    def more(self) -> None:
        self.offset = torch.rand(8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(inputs) + self.offset)


class PlainList(Net):
    def more(self) -> None:
        self.layers = [nn.Linear(8, 8)]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers[0](self.body(inputs)))


class OwnBatchNorm(Net):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(functional.batch_norm(self.body(inputs), None, None, training=self.training)
                         if self.training else self.body(inputs))  # fmt: skip


class Growing(Net):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.register_buffer("history", inputs.detach())
        return super().forward(inputs)


class Exiting(Net):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise SystemExit(3)
        return super().forward(inputs)


def extra_state(state: Any) -> type[Net]:
    class Extra(Net):
        def get_extra_state(self) -> Any:
            if isinstance(state, BaseException):
                raise state
            return state

        def set_extra_state(self, state: Any) -> None:
            pass

    return Extra


REFUSED: dict[str, tuple[type[nn.Module], str]] = {
    "NoParameters": (NoParameters, "no parameter that is trained"),
    "AllFrozen": (type("AllFrozen", (Net,), {"more": lambda self: self.requires_grad_(False)}),
                  "requires_grad"),
    "HalfParameters": (type("HalfParameters", (Net,), {
        "more": lambda self: self.bfloat16(),
        "forward": lambda self, inputs: Net.forward(self, inputs.bfloat16()),
    }), "expected parameters of float32"),
    "ComplexParameters": (type("ComplexParameters", (Net,), {
        "more": lambda self: self.register_parameter("phase", nn.Parameter(torch.ones(2) * 1j)),
    }), "phase is complex64"),
    "NaNWeights": (type("NaNWeights", (Net,), {
        "more": lambda self: nn.init.constant_(self.body.bias, torch.nan),
    }), "expected finite initial weights, body.bias"),
    "Auxiliary": (Auxiliary, "it must return float logits of shape (2, 3), got tuple"),
    "Detached": (Detached, "does not require grad"),
    "Flag": (Flag, "buffer started changes in training"),
    "RandomMask": (RandomMask, "buffer mask is drawn at random"),
    "RandomTensor": (RandomTensor, "no tensor as an attribute"),
    "PlainList": (PlainList, "no layer in a plain list"),

    "ExtraDict": (extra_state({"seen": 3}), "_extra_state is 'dict'"),
    "ExtraBool": (extra_state(torch.tensor(True)), "no mean can be taken of _extra_state"),
    "ExtraRaises": (extra_state(RuntimeError("no state")), "RuntimeError: no state"),
    "Exiting": (Exiting, "on a batch of 2, it fails: SystemExit: 3"),
    "OwnBatchNorm": (OwnBatchNorm, "on a batch of 1, it fails"),
    "Growing": (Growing, "its state_dict changes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_trained_or_averaged_is_refused_before_anything_runs(
    tiny: Build, name: str
) -> None:
    (mistake,) = check_data(experiment(tiny, name))
    assert mistake.key == "model"
    assert REFUSED[name][1] in mistake.message
    assert "\n" not in mistake.message
    with pytest.raises(ConfigError, match="cannot be trained here"):
        built(name)


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.jit.script(model),
        lambda model: torch.jit.trace(model, torch.zeros(2, FEATURES)),
        lambda model: nn.Sequential(torch.jit.script(model)),
    ],
)
def test_a_model_of_torchscript_is_refused_with_advice(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, make: Callable[[nn.Module], nn.Module]
) -> None:
    def scripted(input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return make(nn.Linear(*input_shape, classes))

    monkeypatch.setattr(sys.modules["foreign_zoo"], "scripted", scripted, raising=False)
    (mistake,) = check_data(experiment(tiny, "scripted"))
    assert mistake.key == "model"
    assert "without torch.jit.script" in mistake.message


def test_a_builder_that_cannot_be_hashed_is_as_good_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dataclass
    class Maker:
        width: int = 8

        def __call__(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
            return nn.Sequential(nn.Linear(*input_shape, self.width), nn.Linear(self.width, classes))

    monkeypatch.setattr(sys.modules["foreign_zoo"], "maker", Maker(), raising=False)
    assert built("maker")(torch.ones(2, FEATURES)).shape == (2, CLASSES)


def test_an_architecture_is_tried_once_and_anew_when_its_name_stands_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    def maker(number: int) -> Callable[..., nn.Module]:
        def make(input_shape: tuple[int, ...], classes: int) -> nn.Module:
            made.append(number)
            return nn.Linear(*input_shape, classes)

        return make

    for number in (1, 2):
        monkeypatch.setattr(sys.modules["foreign_zoo"], "maker", maker(number), raising=False)
        for seed in range(3):
            built("maker", seed)
    assert [made.count(number) for number in (1, 2)] == [5, 5]


@pytest.mark.parametrize("size", [1, 3])
def test_a_participant_whose_model_exits_costs_only_that_participant(
    tiny: Build, run_arm: Run, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    class Unlucky(Net):
        """Fails once it has learned something."""

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.training and len(inputs) > 2:
                raise SystemExit(0)
            return super().forward(inputs)

    monkeypatch.setattr(sys.modules["foreign_zoo"], "Unlucky", Unlucky, raising=False)
    with pytest.raises(RunError, match="SystemExit"):
        run_arm(experiment(tiny, "Unlucky", **{"server.cohort-size": size}))


@pytest.mark.parametrize("mode", ["kd", "ntd", "proximal", "mutual"])
@pytest.mark.parametrize("name", ["OldWeightNorm", "WeightNorm", "Odd", "Remembering", "Tied", "BoolMask"])
def test_a_foreign_model_trains_in_every_local_mode(tiny: Build, run_arm: Run, name: str, mode: str) -> None:
    local = {"mode": mode, "epochs": 1, "batch-size": 16, "lr": 0.1}
    local |= {"mu": 0.1} if mode == "proximal" else {}
    result = run_arm(experiment(tiny, name, local=local))
    assert [record.answered for record in result.records[1:]] == [3, 3]


def test_constants_of_which_no_mean_can_be_taken_stay_where_they_are() -> None:
    model = built("Attention", seed=5)
    assert "mask" not in state_of(model)
    load_state(model, state_of(built("Attention", seed=6)))
    assert model.mask[0, 1] == -torch.inf


def test_whole_numbers_that_are_drawn_travel_and_are_used_at_every_level(tiny: Build, run_arm: Run) -> None:
    """A cohort of one is looped; torch.func trains the others, with their own order of features."""
    curves = [
        [record.loss for record in run_arm(chosen).records]
        for chosen in (experiment(tiny, "Permuting", **{"server.cohort-size": size}) for size in (1, 3))
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def states_after(run_arm: Run, chosen: Experiment) -> State:
    return dict(run_arm(chosen).arrays.to_torch_state_dict())


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("mode", ["plain", "kd"])
def test_a_model_that_writes_into_its_inputs_learns_like_its_twin(
    tiny: Build, run_arm: Run, monkeypatch: pytest.MonkeyPatch, size: int, mode: str
) -> None:
    class Twin(Net):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs * 0.5)

    monkeypatch.setattr(sys.modules["foreign_zoo"], "Twin", Twin, raising=False)
    local = {"mode": mode, "epochs": 1, "batch-size": 16, "lr": 0.1}
    curves = [
        [
            (record.accuracy, record.test_accuracy)
            for record in run_arm(
                experiment(
                    tiny, name, **{"local": local, "server.cohort-size": size, "rounds": {"horizon": 3}}
                )
            ).records
        ]
        for name in ("Halved", "Twin")
    ]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("strategy", ["fedavg", "feddf", "fedmd"])
def test_no_model_changes_the_data_that_all_arms_share(
    tiny: Build, run_arm: Run, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setattr(sys.modules["foreign_zoo"], "Shifted", Shifted, raising=False)
    chosen = experiment(tiny, "Shifted", **server(strategy))
    prepared = prepare(chosen.data)
    data, held_out = server_data(prepared), held_out_data(prepared)
    parts = [data.validation, data.transfer, held_out.evaluation, held_out.test]
    before = [part.inputs.clone() for part in parts]
    run_arm(chosen, data=data, held_out=held_out)
    assert all(torch.equal(part.inputs, kept) for part, kept in zip(parts, before, strict=True))


def live_modules() -> int:
    gc.collect()
    return sum(issubclass(type(thing), nn.Module) for thing in gc.get_objects())


@pytest.mark.slow
def test_feddf_keeps_no_model_of_an_earlier_round(tiny: Build, run_arm: Run) -> None:
    counts: dict[int, int] = {}

    def count(record: Any) -> None:
        if record.round in (3, 30):
            counts[record.round] = live_modules()

    chosen = experiment(tiny, "BoolMask", **server("feddf"), rounds={"horizon": 30})
    run_arm(chosen, on_record=count)
    assert counts[30] == counts[3]
