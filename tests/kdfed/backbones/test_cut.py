from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch import nn

from kdfed.backbones import BackboneSettings, Cut, split
from kdfed.backbones.cut import _split
from kdfed.cohort.folded import FoldedModel
from kdfed.errors import DataError
from kdfed.models import batch_norms
from kdfed.models.trying import try_models
from kdfed.seeding import torch_seed

Make = Callable[..., BackboneSettings]
CUTS = ("head", "last:1", "last:2", "all")


def images(count: int = 5, size: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, size, size), generator=generator).to(torch.uint8)


def tail_of(cut: Cut, classes: int = 3) -> nn.Module:
    with torch_seed(7):
        return cut.tail(classes).eval()


def test_wherever_it_is_cut_the_logits_are_those_of_the_uncut_network(tiny: Make) -> None:
    whole = split(tiny(trainable="all"))
    wanted = tail_of(whole)(whole.frozen(images()))
    for trainable in CUTS:
        cut = split(tiny(trainable=trainable))
        assert torch.equal(tail_of(cut)(cut.frozen(images())), wanted), trainable


def test_the_slow_twin_of_all_that_a_backbone_does_agrees(tiny: Make) -> None:
    cut = split(tiny())
    module = copy.deepcopy(cut.frozen.body)
    values = images().double() / 255
    for channel, (mean, std) in enumerate(zip((0.4, 0.5, 0.6), (0.2, 0.25, 0.5), strict=True)):
        values[:, channel] = (values[:, channel] - mean) / std
    for stage in module.children():
        values = stage.double()(values)
    assert torch.allclose(cut.frozen(images()), values.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("trainable", "shape", "trained"),
    [
        ("head", (6,), ()),
        ("last:1", (4, 12, 12), ("two",)),
        ("last:2", (3, 12, 12), ("one", "two")),
        ("all", (3, 12, 12), ("one", "two")),
    ],
)
def test_a_cut_says_what_is_trained_and_of_what_shape_activations_are(
    tiny: Make, trainable: str, shape: tuple[int, ...], trained: tuple[str, ...]
) -> None:
    cut = split(tiny(trainable=trainable))
    assert (cut.shape, cut.trained, cut.stages) == (shape, trained, ("one", "two"))
    assert (cut.features, cut.size) == (6, 12)
    assert tuple(cut.frozen(images()).shape) == (5, *shape)


def test_the_state_of_a_tail_holds_what_is_trained_and_nothing_else(tiny: Make) -> None:
    assert list(split(tiny()).tail(3).state_dict()) == ["head.weight", "head.bias"]
    tail = split(tiny(trainable="last:1")).tail(3)
    keys = set(tail.state_dict())
    assert {key.rpartition(".")[0] for key in keys} == {"head", "body.two.0.0", "body.two.0.1"}
    assert all(values.requires_grad for values in tail.parameters())
    assert tail.training


def test_frozen_batch_norm_computes_the_same_logits_and_keeps_its_statistics_out_of_the_state(
    tiny: Make,
) -> None:
    trained, cut = (split(tiny(trainable="last:1", batch_norm=how)) for how in ("train", None))
    activations = trained.frozen(images())
    assert torch.equal(tail_of(trained)(activations), tail_of(cut)(activations))
    tail = tail_of(cut).train()
    keys = {"body.two.0.1.weight", "body.two.0.1.bias"}
    assert {key for key in tail.state_dict() if key.startswith("body.two.0.1.")} == keys
    assert (cut.weights_sha256, cut.fingerprint) == (trained.weights_sha256, trained.fingerprint)
    torch.testing.assert_close(tail(activations)[:1], tail(activations[:1]))  # nobody else's batch matters
    tail(activations).sum().backward()
    assert all(values.grad is not None and bool(values.grad.any()) for values in tail.parameters())


@pytest.mark.parametrize("trainable", ["last:1", "last:4", "all"])
def test_frozen_batch_norm_in_the_blocks_of_torchvision(trainable: str, tmp_path: Path) -> None:
    network = torchvision.models.resnet18(num_classes=3)
    for norm in batch_norms(network):
        nn.init.uniform_(norm.running_mean, -1, 1)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    shared = {"backbone": "torchvision:resnet18", "weights": f"file:{tmp_path / 'weights.pt'}", "size": 64}
    trained, cut = (
        split(BackboneSettings(**shared, trainable=trainable, batch_norm=how)) for how in ("train", "frozen")
    )
    activations = trained.frozen(images(2, 64))
    assert torch.equal(tail_of(trained)(activations), tail_of(cut)(activations))
    assert batch_norms(tail_of(trained))
    assert not batch_norms(tail_of(cut))
    again = tail_of(cut).train()
    assert torch.equal(again(activations), tail_of(cut)(activations))


@pytest.mark.parametrize(
    ("name", "problem", "left"),
    [
        (
            "plain",
            "has no effect: the trained stages of 'own_backbones:plain' (body) have no BatchNorm; remove it",
            0,
        ),
        ("forgetful", "a BatchNorm2d keeps no statistics; use batch-norm: train", 1),
        (
            "other",
            "Own is no BatchNorm layer of torch.nn, and may compute something else; use batch-norm: train",
            1,
        ),
        ("Looking", "'FixedBatchNorm' object has no attribute 'running_mean'; use batch-norm: train", 1),
    ],
)
def test_statistics_that_cannot_be_frozen_are_refused_where_that_was_asked_for(
    name: str, problem: str, left: int
) -> None:
    settings = BackboneSettings(backbone=f"own_backbones:{name}", trainable="all", size=12)
    with pytest.raises(DataError) as caught:
        split(settings.model_copy(update={"batch_norm": "frozen"}))
    assert problem in str(caught.value)
    assert caught.value.key == "model.batch-norm"
    assert len(batch_norms(split(settings).tail(3))) == left


def test_layers_and_weights_that_stages_share_are_shared_when_they_are_frozen() -> None:
    settings = BackboneSettings(backbone="own_backbones:Sharing", trainable="all", size=12)
    counts = [
        len(list(split(settings.model_copy(update={"batch_norm": how})).tail(3).parameters()))
        for how in ("train", "frozen")
    ]
    assert counts == [5, 5]  # a scale, two shifts, and a head


def test_what_is_frozen_stays_as_it_is_in_training(tiny: Make) -> None:
    cut = split(tiny(trainable="last:1"))
    before = copy.deepcopy(cut.frozen.state_dict())
    cut.frozen.train().requires_grad_(True)
    activations = cut.frozen(images())
    assert not activations.requires_grad
    assert not any(module.training for module in cut.frozen.modules())
    tail = cut.tail(3)
    tail(activations).sum().backward()
    assert all(values.grad is not None for values in tail.parameters())
    after = cut.frozen.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_tails_share_nothing_with_each_other_or_with_the_backbone(tiny: Make) -> None:
    cut = split(tiny(trainable="all"))
    with torch_seed(7):
        one = cut.tail(3)
    wanted = cut.tail(3).body.state_dict()
    with torch.no_grad():
        for values in one.parameters():
            values.add_(1)
    again = cut.tail(3).body.state_dict()
    assert all(torch.equal(wanted[key], again[key]) for key in wanted)


@pytest.mark.parametrize("trainable", CUTS)
def test_a_tail_can_be_trained_averaged_and_folded(tiny: Make, trainable: str) -> None:
    cut = split(tiny(trainable=trainable))
    one, other = cut.tail(3), cut.tail(3)
    FoldedModel(cut.tail(3))
    assert try_models("tail", one, other, cut.shape, 3).constants == ()


def test_fingerprints_tell_cuts_sizes_and_weights_apart(tiny: Make, tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    state = split(tiny(trainable="all", batch_norm="train")).tail(3).body.state_dict()
    own = {f"one.{key.removeprefix('one.')}": v + 1 for key, v in state.items() if key.startswith("one.")}
    own |= {f"two.{key.removeprefix('two.0.')}": v for key, v in state.items() if key.startswith("two.0.")}
    torch.save(own, file)
    cuts = [split(tiny()), split(tiny(trainable="last:1")), split(tiny(size=10))]
    cuts.append(split(tiny(weights=f"file:{file}")))
    assert len({cut.fingerprint for cut in cuts}) == 4
    assert len({cut.weights_sha256 for cut in cuts}) == 2
    assert split(tiny()) is cuts[0]


def test_a_fingerprint_does_not_depend_on_the_number_of_threads(tiny: Make) -> None:
    found = []
    for threads in (1, 2):
        _split.cache_clear()
        torch.set_num_threads(threads)
        found.append(split(tiny(size=60)).fingerprint)
        assert torch.get_num_threads() == threads
    assert found[0] == found[1]


def test_weights_of_a_file_are_read_again_when_it_changes(tiny: Make, tmp_path: Path) -> None:
    module = __import__("own_backbones").Tiny()
    file = tmp_path / "weights.pth"
    torch.save(module.state_dict(), file)
    first = split(tiny(weights=f"file:{file}"))
    with torch.no_grad():
        module.one[0].weight.add_(1)
    torch.save({**module.state_dict(), "fc.weight": torch.zeros(2, 6)}, file)
    second = split(tiny(weights=f"file:{file}"))
    assert first.weights_sha256 != second.weights_sha256
    assert torch.equal(second.frozen.body.one[0].weight, module.one[0].weight)  # type: ignore[union-attr, index, operator]


def test_weights_that_nobody_trained_are_the_same_for_everybody(tiny: Make) -> None:
    first = split(tiny())
    torch.manual_seed(99)
    _split.cache_clear()
    assert split(tiny()).weights_sha256 == first.weights_sha256


def test_the_bytes_of_a_frozen_part_are_those_of_its_state(tiny: Make) -> None:
    # one: 4x3x3x3 + 4 weights, 4 x 4 of BatchNorm in float32, and its int64 counter
    assert split(tiny(trainable="last:1")).frozen_bytes == 4 * (4 * 27 + 4 + 16) + 8
    assert split(tiny(trainable="all")).frozen_bytes == 0


def test_more_stages_than_there_are_is_refused(tiny: Make) -> None:
    with pytest.raises(
        DataError, match=r"at most last:2 of a backbone with the stages one, two, got last:3"
    ) as e:
        split(tiny(trainable="last:3"))
    assert e.value.key == "model.trainable"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"trainable": "last:0"}, "trainable"),
        ({"trainable": "body"}, "trainable"),
        ({"weights": "file:"}, "weights"),
        ({"weights": "random"}, "weights"),
        ({"size": 0}, "size"),
    ],
)
def test_other_values_are_refused_where_they_are_written(
    tiny: Make, change: dict[str, object], key: str
) -> None:
    with pytest.raises(ValidationError, match=key):
        tiny(**change)


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("own_backbones:Wrong", "model.backbone", r"the stages two of .* run one after another"),
        ("own_backbones:images", "model.backbone", r"features of shape \(2, D\), got \(2, 3, 224, 224\)"),
        ("efficientnet-lite3", "model.backbone", r"expected one of efficientnet-lite0, .*, torchvision:NAME"),
        ("torchvision:resnet19", "model.backbone", r"no classifier 'resnet19'; did you mean 'resnet1"),
        ("own_backbones:absent", "model.backbone", r"own_backbones:absent"),
    ],
)
def test_what_is_no_backbone_is_refused(name: str, key: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        split(BackboneSettings(backbone=name))
    assert error.value.key == key


def test_images_too_small_for_a_backbone_are_refused() -> None:
    with pytest.raises(DataError, match=r"own_backbones:large' to take images of 16 x 16 pixels") as error:
        split(BackboneSettings(backbone="own_backbones:large", size=16))
    assert error.value.key == "model.size"
