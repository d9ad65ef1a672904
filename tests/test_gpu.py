"""What the CPU promises, on a GPU: the same bits twice, the CPU's results, every method, every engine.

Float32 sums in another order differ in their last bits, and training multiplies that. One epoch of a cohort
agrees to ``NEAR``; short runs agree to ``LOSS`` in their losses and to ``FEW`` of the examples asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.answering import Contribution, _Expected, _summed
from kdfed.arrays import spec_of
from kdfed.cohort import levels, plan_for, predict_stack
from kdfed.cohort import train_cohort as train_in_parts
from kdfed.device import convolutions_restored, exact_convolutions
from kdfed.distill import METHODS
from kdfed.local import LOCAL_MODES, PLAIN
from kdfed.models import state_of
from kdfed.records import RunFolder
from kdfed.seeding import torch_seed
from kdfed.settings import OptimiserSettings
from kdfed.setup import Setup
from kdfed.task import CLASSIFICATION
from kdfed.train import fit
from kdfed.transfer_sets.generated import GeneratorSettings, generate
from simulations.engines import inprocess
from strategies.catalogue import STRATEGIES
from tests.kdfed.cohort.test_cohort import (
    MODELS,
    OTHERS,
    SEEDS,
    SGD,
    SIZES,
    Dropping,
    assert_agree,
    build,
    examples_of,
    loop,
    train_cohort,
)
from tests.setups import CPU

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA runs on")

GPU = Setup(CLASSIFICATION, torch.device("cuda"), threads=1, precision="float32")

NEAR = 1e-4
"""Largest difference of weights after one epoch, absolute, and relative beyond 1."""

LOSS = 2e-2
"""Largest relative difference of a run's losses."""

FEW = 0.05
"""Largest difference of accuracies: 4 of the 80 evaluation examples."""

CNN = {"name": "cnn", "options": {"width": 4}}
SMALL = {"model": CNN, "rounds.horizon": 2, "targets": [0.9]}


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with convolutions_restored():
        exact_convolutions()
        yield


Bits = list[tuple[str, bytes]]


def run(experiment: Any, out: Path, engine: Any = inprocess, nodes: int = 2) -> tuple[list[Any], list[str]]:
    """Return a run's rounds, and the hashes of the weights that each arm ended with."""
    folder = RunFolder.open_for(out, experiment)
    engine.run(experiment, folder, nodes=nodes, on_event=lambda event: None)
    rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    return without_seconds(rows), [one["weights_sha256"] for one in folder.read_summary()["runs"]]


def without_seconds(rows: list[Any]) -> list[Any]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture
def arm(run_arm: Any, tiny: Any) -> Any:
    """Return a function that runs one arm on a device, and returns its rounds and its weights' bits."""

    def run(device: str, name: str = "cold", **changes: Any) -> tuple[list[Any], Bits]:
        result = run_arm(tiny(device=device, only=name, **{**SMALL, **changes}), name)
        state = result.arrays.to_torch_state_dict()
        bits = [(key, values.numpy().tobytes()) for key, values in state.items()]
        return without_seconds([asdict(record) for record in result.records]), bits

    return run


def assert_near(rows: list[Any], others: list[Any]) -> None:
    assert len(rows) == len(others) > 0
    for one, other in zip(rows, others, strict=True):
        assert (one["arm"], one["round"], one["local_steps"]) == (
            other["arm"], other["round"], other["local_steps"]
        )  # fmt: skip
        assert one["loss"] == pytest.approx(other["loss"], rel=LOSS)
        assert one["accuracy"] == pytest.approx(other["accuracy"], abs=FEW)


# ----------------------------------------------------------------------------- runs


def test_a_run_gives_the_same_bits_twice_and_the_cpus_result(tiny, tmp_path):
    changes = {**SMALL, "controls": ["server", "averaged", "longer"]}
    first, again = (run(tiny(device="cuda", **changes), tmp_path / name) for name in ("one", "two"))
    assert first == again
    assert_near(first[0], run(tiny(device="cpu", **changes), tmp_path / "cpu")[0])


def test_auto_is_the_gpu(tiny, arm):
    assert Setup.of(tiny(device="auto").arm("cold"), CLASSIFICATION).device.type == "cuda"
    assert arm("auto") == arm("cuda")


@pytest.mark.parametrize(
    "model",
    [
        {"name": "mlp", "options": {"hidden": [16]}},
        {"name": "cnn", "options": {"width": 4, "norm": "batch"}},
        {"name": "resnet8", "options": {"width": 4}},
    ],
    ids=["mlp", "cnn batch", "resnet8"],
)
def test_every_model_gives_the_same_bits_twice_and_the_cpus_result(arm, model):
    """In small steps: those of a ResNet multiply what sums in another order begin."""
    steps = {"lr": 0.01}
    changes = {"model": model, "local": steps, "teachers": steps, "consolidation": steps}
    first, again = (arm("cuda", "consolidated", **changes) for _ in range(2))
    assert first == again
    assert_near(first[0], arm("cpu", "consolidated", **changes)[0])


def test_the_deepest_model_gives_the_same_bits_twice(arm):
    """Not the CPU's result: its norms divide by next to nothing on images of 8x8, and cohorts of another size
    move the CPU's own losses by four percent."""
    first, again = (
        arm("cuda", "consolidated", model={"name": "resnet18", "options": {"width": 4}}) for _ in range(2)
    )
    assert first == again


def test_participants_in_one_cohort_or_in_several_agree(arm):
    one, *others = (arm("cuda", **{"server.cohort-size": size})[0] for size in (1, 2, 5))
    for other in others:
        assert_near(other, one)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", list(METHODS))
def test_every_kd_method(arm, name, labels):
    more: dict[str, Any] = {}
    if name == "tuned":
        more = {"temperatures": [1.0, 3.0], "weights": [0.5 if labels else 1.0]}
    elif name == "vanilla":
        more = {"weight": 0.5 if labels else 1.0}
    chosen = {"method": name, "labels": labels, "epochs": 3, "batch-size": 16, "lr": 0.05, **more}
    first, again = (arm("cuda", "consolidated", consolidation=chosen) for _ in range(2))
    assert first == again
    assert_near(first[0], arm("cpu", "consolidated", consolidation=chosen)[0])


@pytest.mark.parametrize("views", [None, 2])
def test_transfer_images_that_change(arm, views):
    chosen = {"augmentation": ["crop", "flip"], "epochs": 2, "batch-size": 16, "lr": 0.05}
    chosen |= {} if views is None else {"views": views}
    here, there = (arm(device, "consolidated", consolidation=chosen) for device in ("cuda", "cpu"))
    assert_near(here[0], there[0])


def test_teachers_that_upload_logits(arm):
    here, there = (
        arm(device, "consolidated", teachers={"upload": "logits"})[0] for device in ("cuda", "cpu")
    )
    assert_near(here, there)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(LOCAL_MODES))
def test_every_local_mode(arm, name, precision):
    """In bfloat16, too, a run is near the CPU's in float32."""
    more = {"mu": 0.1} if name == "proximal" else {}
    local = {"mode": name, "epochs": 1, "batch-size": 8, "lr": 0.05, **more}
    first, again = (arm("cuda", precision=precision, local=local) for _ in range(2))
    assert first == again
    assert_near(first[0], arm("cpu", local=local)[0])


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_strategy(arm, name):
    changes: dict[str, Any] = {"server.strategy": name}
    if name == "fedprox":
        changes |= {"local.mode": "proximal", "local.mu": 0.1}
    first, again = (arm("cuda", **changes) for _ in range(2))
    assert first == again
    assert_near(first[0], arm("cpu", **changes)[0])


def test_generated_transfer_examples(arm):
    generator = {"steps": 10, "batch-size": 32, "latent": 8, "width": 8}
    chosen = {"transfer": "generated", "images": 64, "generator": generator, "epochs": 2}
    first, again = (arm("cuda", "consolidated", consolidation=chosen) for _ in range(2))
    assert first == again


def test_a_generator_agrees_with_the_cpus():
    settings = GeneratorSettings(steps=3, batch_size=32, latent=8, width=8)
    teachers = [build("cnn", seed)[0] for seed in range(2)]
    here = generate(teachers, MODELS["cnn"][1], 40, settings, seed=1)
    there = generate([teacher.cuda() for teacher in teachers], MODELS["cnn"][1], 40, settings, seed=1)
    assert there.device.type == "cpu"
    torch.testing.assert_close(there, here, rtol=1e-2, atol=1e-2)


# ----------------------------------------------------------------------------- cohorts


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_a_model_is_folded_as_on_a_cpu(name):
    """In float32 proper: in TF32 a folded model's logits seem to be another's."""
    model, shape = build(name)
    level = OTHERS[name][2] if name in OTHERS else "folded"
    assert plan_for(model.cuda(), shape, 5).level == level


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_cohorts_agree_with_participants_one_by_one_and_with_the_cpu(name):
    model, shape = build(name)
    examples, before = examples_of(shape), state_of(model)
    there = train_cohort(model, before, examples, SIZES, SGD, PLAIN, SEEDS)
    model = model.cuda()
    here = train_cohort(model, before, examples, SIZES, SGD, PLAIN, SEEDS, setup=GPU)
    again = train_cohort(model, before, examples, SIZES, SGD, PLAIN, SEEDS, setup=GPU)
    assert all(torch.equal(values, again.states[key]) for key, values in here.states.items())
    alone = loop(model, examples.to("cuda"), SGD, PLAIN)
    alone.states = {key: values.cpu() for key, values in alone.states.items()}
    assert_agree(here, alone, atol=NEAR, rtol=NEAR)
    if name != "dropping":  # each device draws its own numbers
        assert_agree(here, there, atol=NEAR, rtol=NEAR)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_every_optimiser_agrees_with_participants_one_by_one(kind):
    momentum = {"momentum": 0.9} if kind == "sgd" else {}
    settings = OptimiserSettings(
        epochs=3, batch_size=5, optimizer=kind, lr=0.01, weight_decay=0.01, **momentum
    )
    model, shape = build("cnn")
    model = model.cuda().double()
    examples = examples_of(shape).to("cuda")
    examples = type(examples)(examples.inputs.double(), examples.labels)
    here = train_cohort(model, state_of(model), examples, SIZES, settings, PLAIN, SEEDS, setup=GPU)
    alone = loop(model, examples, settings, PLAIN)
    alone.states = {key: values.cpu() for key, values in alone.states.items()}
    assert_agree(here, alone, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet8"])
def test_a_sum_of_single_steps_is_the_sum_of_the_participants(name):
    model, shape = build(name)
    model, examples = model.cuda(), examples_of(shape)
    settings = SGD.model_copy(update={"batch_size": max(SIZES)})
    arguments = (model, state_of(model), examples, SIZES, settings, PLAIN, SEEDS)
    (part,) = train_in_parts(*arguments, setup=GPU, sums=True)
    each = train_cohort(*arguments, setup=GPU)
    for key, values in part.sums.items():
        expected = sum(size * each.states[key][row].double() for row, size in enumerate(SIZES))
        torch.testing.assert_close(values, expected, rtol=NEAR, atol=NEAR * sum(SIZES))


@pytest.mark.parametrize("name", ["cnn", "cnn batch", "mlp", "resnet8"])
def test_bfloat16_is_near_float32(name):
    """Eight bits of mantissa: losses agree to some percent, weights to some percent of what they moved."""
    model, shape = build(name)
    model, examples = model.cuda(), examples_of(shape)
    before = state_of(model)
    arguments = (model, before, examples, SIZES, SGD, PLAIN, SEEDS)
    exact = train_cohort(*arguments, setup=GPU)
    rough = train_cohort(*arguments, setup=replace(GPU, precision="bfloat16"))
    for one, other in zip(rough.results, exact.results, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.05, abs=0.02)
    moved = sum(float((v - before[k].cpu()).double().norm()) for k, v in exact.states.items())
    apart = sum(float((rough.states[k] - v).double().norm()) for k, v in exact.states.items())
    assert 0 < apart < 0.2 * moved


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_logits_of_a_stack_agree_with_the_cpus(name):
    model, shape = build(name)
    stack = {
        key: torch.stack([state_of(build(name, seed)[0])[key] for seed in range(3)])
        for key in state_of(model)
    }
    inputs = examples_of(shape).inputs
    there = predict_stack(model, stack, inputs)
    here = predict_stack(model.cuda(), stack, inputs)
    assert here.device.type == "cpu"
    torch.testing.assert_close(here, there, rtol=NEAR, atol=NEAR)


def test_dropout_draws_the_same_numbers_again_and_leaves_the_gpus_generator_alone():
    examples = examples_of((10,))

    def trained() -> dict[str, torch.Tensor]:
        with torch_seed(0):
            model = Dropping().cuda()
        fit(model, examples, SGD, PLAIN, seed=7)
        return state_of(model)

    first = trained()
    before = torch.cuda.get_rng_state()
    again = trained()
    assert all(torch.equal(values, again[key]) for key, values in first.items())
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_convolutions_keep_all_of_float32():
    """TF32 would be off by some 1e-3."""
    generator = torch.Generator().manual_seed(0)
    images, filters = (torch.randn(*s, generator=generator) for s in ((8, 16, 12, 12), (16, 16, 3, 3)))
    exact = torch.nn.functional.conv2d(images.double(), filters.double())
    found = torch.nn.functional.conv2d(images.cuda(), filters.cuda()).cpu().double()
    assert float((found - exact).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["cnn", "cnn batch"])
def test_where_sums_are_enough_states_stay_on_the_gpu(name):
    """A client sums them there, in float64: what it would sum of the same states on the CPU."""
    model, shape = build(name)
    model, examples = model.cuda(), examples_of(shape)
    arguments = (model, state_of(model), examples, SIZES, SGD, PLAIN, SEEDS)
    there, here = (list(train_in_parts(*arguments, setup=GPU, sums=sums)) for sums in (True, False))
    kept = [part for part in there if part.states]
    assert kept
    for part in kept:
        assert all(values.is_cuda for values in part.states.values())
    everybody = {index: state for part in here for index, state, _ in part.each()}
    if name == "cnn batch":  # nobody's single step is summed apart
        for part in kept:
            for index, state, _ in part.each():
                assert all(torch.equal(v.cpu(), everybody[index][k]) for k, v in state.items())
    members = list(range(len(SIZES)))
    spec = spec_of(everybody[0])
    sums: dict[str, torch.Tensor] = dict.fromkeys(spec, torch.zeros(()))
    for part in there:
        contribution = Contribution(
            [members[i] for i in part.indices],
            part.states,
            [{"num-examples": SIZES[i]} for i in part.indices],
            part.sums,
        )
        checked = _summed(contribution, _Expected(spec, None))
        assert not checked.problems
        sums = {key: values + checked.sums[key].cpu() for key, values in sums.items()}
    for key, values in sums.items():
        expected = sum(size * everybody[i][key].double() for i, size in enumerate(SIZES))
        torch.testing.assert_close(values, expected, rtol=NEAR, atol=NEAR * sum(SIZES))


def test_a_fold_that_is_wide_is_the_fold_that_is_narrow(monkeypatch):
    model, shape = build("cnn")
    model, examples = model.cuda(), examples_of(shape)
    arguments = (model, state_of(model), examples, SIZES, SGD, PLAIN, SEEDS)
    wide = train_cohort(*arguments, setup=GPU)
    monkeypatch.setitem(levels.MOST_FOLDED, "cuda", 3)
    assert_agree(train_cohort(*arguments, setup=GPU), wide, atol=NEAR, rtol=NEAR)


# ----------------------------------------------------------------------------- engines


ENGINE_ARMS = {
    "cold": {"start": "random"},
    "consolidated": {"start": "consolidated"},
    "mutual": {"start": "random", "local": {"mode": "mutual", "epochs": 1, "batch-size": 8, "lr": 0.1}},
}


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of Ray's processes
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
@pytest.mark.parametrize("name", ["ray", "flower"])
def test_workers_that_share_the_gpu_give_the_bits_of_the_in_process_engine(tiny, tmp_path, name, device):
    """By equal shares, or all of them on the one that is named."""
    pytest.importorskip("ray")
    from simulations.engines import flower, ray

    experiment = tiny(device=device, **SMALL, arms=ENGINE_ARMS, baseline="cold")
    reference = run(experiment, tmp_path / "inprocess", nodes=1)
    engine = {"ray": ray, "flower": flower}[name]
    assert run(experiment, tmp_path / name, engine, nodes=2) == reference


def test_a_run_leaves_cudnns_arithmetic_as_it_was(tiny, tmp_path):
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = True
    run(tiny(device="cuda", only="cold", **SMALL), tmp_path)
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.allow_tf32


def test_cohorts_on_the_cpu_are_what_they_were_beside_a_gpu():
    model, shape = build("cnn")
    arguments = (model, state_of(model), examples_of(shape), SIZES, SGD, PLAIN, SEEDS)
    first = train_cohort(*arguments, setup=CPU)
    torch.ones(1).cuda()
    again = train_cohort(*arguments, setup=CPU)
    assert all(torch.equal(values, again.states[key]) for key, values in first.states.items())
