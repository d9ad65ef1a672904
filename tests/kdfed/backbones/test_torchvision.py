from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from kdfed.backbones import BackboneSettings, split
from kdfed.backbones.registry import find_backbone
from kdfed.backbones.weights import fit_state
from kdfed.errors import DataError

pytest.importorskip("torchvision")

SMALL = "shufflenet_v2_x0_5"


def saved(name: str, folder: Path) -> Path:
    """Save what torchvision publishes of a network, with random numbers."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    file = folder / f"{name}.pth"
    torch.save(get_model(name, weights=None).state_dict(), file)
    return file


def settings(name: str, file: Path, **changes: Any) -> BackboneSettings:
    return BackboneSettings(
        **{"backbone": f"torchvision:{name}", "weights": f"file:{file}", "size": 64, **changes}
    )


@pytest.mark.parametrize(
    ("name", "features", "stages"),
    [
        ("resnet18", 512, ("conv1", "layer1", "layer2", "layer3", "layer4")),
        (SMALL, 1024, ("conv1", "stage2", "stage3", "stage4", "conv5")),
        ("regnet_y_400mf", 440, ("stem", *(f"trunk_output_block{number}" for number in range(1, 5)))),
    ],
)
def test_a_classifier_is_cut_between_its_stages(
    name: str, features: int, stages: tuple[str, ...], tmp_path: Path
) -> None:
    file = saved(name, tmp_path)
    images = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = []
    for trainable in ("head", "last:1", "all"):
        cut = split(settings(name, file, trainable=trainable))
        assert (cut.features, cut.stages) == (features, stages)
        torch.manual_seed(0)
        found.append(cut.tail(3).eval()(cut.frozen(images)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "mnasnet0_5", "densenet121"])
def test_its_features_are_what_its_last_layer_reads(name: str) -> None:
    """The last linear layer's inputs; of squeezenet, which has none, the means that its classifier reads."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    whole = get_model(name, weights=None)
    network = find_backbone(f"torchvision:{name}").build({})
    fit_state(network.module, whole.state_dict(), name, network.renamed)
    linear = [part for part in whole.modules() if isinstance(part, torch.nn.Linear)][-1:] or [
        whole.classifier
    ]
    read: list[torch.Tensor] = []
    linear[0].register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        whole.eval()(images)
        staged = torch.nn.Sequential(*network.stages.values()).eval()(images)
    wanted = read[0].mean((2, 3)) if read[0].ndim == 4 else read[0]
    assert torch.equal(staged, wanted)
    assert len(network.stages) > 5


def test_a_network_that_is_no_chain_is_one_stage() -> None:
    network = find_backbone("torchvision:vit_b_32").build({"image_size": 32})
    assert (list(network.stages), network.size) == (["body"], 32)


def test_nothing_is_done_in_place() -> None:
    network = find_backbone("torchvision:resnet18").build({})
    assert not any(getattr(module, "inplace", False) for module in network.module.modules())


def test_it_is_normalised_as_torchvision_does() -> None:
    from torchvision.models import get_model_weights

    network = find_backbone(f"torchvision:{SMALL}").build({})
    preset = get_model_weights(SMALL).DEFAULT.transforms()
    assert (list(network.mean), list(network.std), [network.size]) == (
        preset.mean,
        preset.std,
        preset.crop_size,
    )


def test_the_inputs_of_googlenet_are_those_that_it_was_trained_on() -> None:
    """Its transform_input undoes ImageNet's normalisation: from -1 to 1."""
    from torchvision.models import GoogLeNet

    network = find_backbone("torchvision:googlenet").build({})
    pixels = torch.rand(1, 3, 4, 4)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    theirs = GoogLeNet(transform_input=True, init_weights=False)._transform_input((pixels - mean) / std)
    assert torch.allclose((pixels - network.mean[0]) / network.std[0], theirs, atol=1e-6)


def test_weights_that_are_not_on_disk_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", pytest.fail)
    with pytest.raises(
        DataError, match=r"checkpoints/shufflenetv2_x0\.5-f707e7126e\.pth, got no such"
    ) as error:
        split(BackboneSettings(backbone=f"torchvision:{SMALL}"))
    assert error.value.key == "model.weights"


def test_weights_are_downloaded_once_to_where_torchvision_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked: list[tuple[str, str | None]] = []

    def download(url: str, path: str, prefix: str | None, progress: bool) -> None:
        asked.append((url.rpartition("/")[2], prefix))
        Path(path).write_bytes(saved(SMALL, tmp_path).read_bytes())

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    monkeypatch.setattr("kdfed.backbones.cut.check_hash", lambda path: path)
    wanted = BackboneSettings(backbone=f"torchvision:{SMALL}", weights="download", size=64)
    first = split(wanted)
    installed = split(wanted.model_copy(update={"weights": "installed"}))
    assert asked == [("shufflenetv2_x0.5-f707e7126e.pth", "f707e7126e")]
    assert first.weights_sha256 == installed.weights_sha256


def test_a_download_that_fails_says_what_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(DataError, match=r"no route to host; fetch https://.* weights: file:PATH") as error:
        split(BackboneSettings(backbone=f"torchvision:{SMALL}", weights="download"))
    assert error.value.key == "model.weights"


def test_a_damaged_file_of_torchvision_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth").write_bytes(b"half")
    with pytest.raises(DataError, match=r"begins with f707e7126e, got one with .*: it is damaged"):
        split(BackboneSettings(backbone=f"torchvision:{SMALL}"))


def test_names_of_layers_that_old_files_have_are_todays() -> None:
    renamed = find_backbone("torchvision:densenet121").build({}).renamed
    old = "features.denseblock1.denselayer1.norm.1.weight"
    assert renamed(old) == "features.denseblock1.denselayer1.norm1.weight"
    assert renamed(renamed(old)) == renamed(old)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3}, "option 'num_classes' is set by kdfed"),
        ({"widht": 3}, r"does not take the options {'widht': 3}"),
    ],
)
def test_options_that_it_does_not_take_are_refused(
    options: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        split(settings("resnet18", saved("resnet18", tmp_path), options=options))


def test_a_network_that_no_machine_has_room_for_is_refused_before_it_is_built() -> None:
    with pytest.raises(DataError, match=r"has 85\d{9} weights, expected at most 1073741824") as caught:
        find_backbone("torchvision:mobilenet_v2").build({"width_mult": 200.0})
    assert caught.value.key == "model.options"


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing conv1\.weight, .* and \d+ more"):
        split(settings("resnet18", saved(SMALL, tmp_path)))


def test_building_leaves_torchs_generator_alone(tmp_path: Path) -> None:
    file = saved(SMALL, tmp_path)
    before = copy.deepcopy(torch.get_rng_state())
    split(settings(SMALL, file))
    assert torch.equal(torch.get_rng_state(), before)
