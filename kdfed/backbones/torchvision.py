"""The classifiers of torchvision without their last layer, with torchvision's weights.

A classifier's forward pass is written in Python, so what its stages are is not to be read from the module:
its children are run one after another, with what may stand before the last (nothing, flattening, the mean
over pixels), and if that gives the same features to the bit they are the stages. Otherwise, as of a vision
transformer, the whole network is one stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdfed.backbones.backbone import IMAGENET, Backbone, How, Network, Origin
from kdfed.backbones.weights import KEY
from kdfed.errors import DataError, near, one_line, shown

_PREFIX = "torchvision:"
_DESCRIPTION = "any torchvision classifier without its last layer, e.g. torchvision:resnet18"
_CONTAINERS = ("features", "layers", "trunk_output", "blocks")  # their children are stages
_OURS = ("num_classes", "weights", "aux_logits", "init_weights", "transform_input")
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
_MOST_NUMBERS = 2**30  # the largest published network has 645 million
_OLD_DENSE = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")  # densenet's files are from 2017


@lru_cache(maxsize=64)
def find(name: str) -> Backbone:
    """Return the backbone of a name, whether or not torchvision has it."""
    short = name.removeprefix(_PREFIX)
    return Backbone(partial(_build, short), partial(_file, short), partial(_problem, short), _DESCRIPTION)


BACKBONES = Origin(find, _DESCRIPTION, shipped=re.compile(r"torchvision:[A-Za-z0-9_]+"))


def count_numbers(name: str, options: Mapping[str, Any]) -> int:
    """Count the weights and buffers of a classifier without room for any; 0 where it cannot be built.

    Parameters
    ----------
    name
        With ``torchvision:`` before it.
    options
        Its keyword arguments.
    """
    from torchvision.models import get_model

    with suppress(Exception), torch.device("meta"):  # what is wrong, whoever builds it says
        bare = get_model(name.removeprefix(_PREFIX), weights=None, **options)
        return sum(values.numel() for values in bare.state_dict().values())
    return 0


def _build(name: str, options: Mapping[str, Any]) -> Network:
    from torchvision.models import get_model, get_model_weights

    (mean, std), extra = IMAGENET, {}
    if name in ("googlenet", "inception_v3"):  # with transform_input they do this to ImageNet's normalisation
        extra, mean, std = {"aux_logits": False, "init_weights": False}, (0.5,) * 3, (0.5,) * 3
    numbers = count_numbers(_PREFIX + name, options) if options else 0
    if numbers > _MOST_NUMBERS:
        raise DataError(
            f"torchvision:{name} with the options {shown(dict(options))} has {numbers} weights, expected at "
            f"most {_MOST_NUMBERS}",
            "model.options",
        )
    try:
        module: nn.Module = get_model(name, weights=None, **{**options, **extra})
    except Exception as error:  # whatever a constructor says of options that it does not take
        raise DataError(
            f"torchvision:{name} does not take the options {shown(dict(options))}: {one_line(error, 200)}",
            "model.options",
        ) from error
    _drop_classifier(module)
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]  # what a stage was given belongs to others
    size = int(options.get("image_size") or get_model_weights(name).DEFAULT.transforms().crop_size[0])
    return Network(module, _stages(module, size), size, mean, std, _renamed)


def _problem(name: str, options: Mapping[str, Any]) -> str | None:
    try:
        from torchvision import models
    except ImportError:
        return f"'torchvision:{name}' needs torchvision; install kdfed[sim]"
    known = models.list_models(module=models)
    if name not in known:
        return f"torchvision has no classifier {shown(name)}{near(name, known)}"
    taken = [option for option in _OURS if option in options]
    return f"'torchvision:{name}': option {taken[0]!r} is set by kdfed; remove it" if taken else None


def _drop_classifier(module: nn.Module) -> None:
    """Put nothing in place of the last linear layer, or of a head that has none, in place."""
    *_, (head, _) = module.named_children()
    linear = [
        path for path, part in module.get_submodule(head).named_modules() if isinstance(part, nn.Linear)
    ]
    if not linear:  # squeezenet's is a convolution
        module.set_submodule(head, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    else:
        module.set_submodule(f"{head}.{linear[-1]}".rstrip("."), nn.Identity())


def _stages(module: nn.Module, size: int) -> dict[str, nn.Module]:
    *parts, (last, head) = _parts(module)
    probe = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    module.eval()
    with torch.no_grad():
        wanted = module(probe)
        for between in _between():
            stages = _joined([*parts, ("between", between), (last, head)])
            with suppress(Exception):  # whatever a layer says of shapes that do not fit it
                if torch.equal(nn.Sequential(*stages.values()).eval()(probe), wanted):
                    return stages
    return {"body": module}


def _between() -> list[nn.Module]:
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return [nn.Identity(), nn.Flatten(), nn.Sequential(*pooled), nn.Sequential(nn.ReLU(), *pooled)]


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if name in _CONTAINERS:
            for number, part in child.named_children():
                yield f"{name}_{number}", part
        else:
            yield name, child


def _joined(parts: list[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """Return stages: what has no weights, or normalises, belongs to the part before it."""
    groups: list[tuple[str, list[nn.Module]]] = []
    for name, part in parts:
        if groups and (isinstance(part, _NORMS) or not list(part.parameters())):
            groups[-1][1].append(part)
        else:
            groups.append((name, [part]))
    return {name: group[0] if len(group) == 1 else nn.Sequential(*group) for name, group in groups}


def _renamed(key: str) -> str:
    return _OLD_DENSE.sub(r"\1\2", key)


def _file(name: str, how: How) -> Path:
    from torchvision.models import get_model_weights

    url = str(get_model_weights(name).DEFAULT.url)
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file():
        if how == "installed":
            raise DataError(
                f"expected the weights of torchvision:{name} as {path}, got no such file; weights: download "
                "fetches it, or give a file, weights: file:PATH",
                KEY,
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            hashed = re.search(r"-([0-9a-f]{8,})\.pth", path.name)
            torch.hub.download_url_to_file(url, str(path), hashed[1] if hashed else None, progress=False)
        except Exception as error:  # of the network, the disk, or a file that is not whole
            raise DataError(
                f"the weights of torchvision:{name} cannot be downloaded to {path}: {one_line(error)}; fetch "
                f"{url} elsewhere, and give the file, weights: file:PATH",
                KEY,
            ) from error
    return path
