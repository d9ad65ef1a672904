"""A backbone in two parts: frozen below the cut, trained above it.

``frozen`` maps images as they are stored to activations at the cut; ``tail`` maps these to logits. For every
cut ``tail(frozen(x))`` is what the uncut network gives, to the bit, in evaluation mode.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from kdfed.backbones.backbone import Network
from kdfed.backbones.images import Preparation
from kdfed.backbones.registry import check_backbone, find_backbone
from kdfed.backbones.settings import BackboneSettings
from kdfed.backbones.weights import check_hash, digest, fit_state, read_state
from kdfed.errors import DataError, KdfedError, one_line, shown
from kdfed.fixed_norm import batch_norms, unfixable, with_fixed_norms
from kdfed.inputs import spare_inputs
from kdfed.named import blamed
from kdfed.paths import user_path
from kdfed.seeding import torch_generator, torch_seed

_PROBES = 2


class Frozen(nn.Module):
    """What lies below a cut: in evaluation mode for ever, and without gradient.

    BatchNorm uses the statistics that came with the weights, and never changes them.

    Parameters
    ----------
    preparation
        Of images as they are stored.
    stages
        Those below the cut, in their order; perhaps none.
    """

    def __init__(self, preparation: Preparation, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.preparation = preparation
        self.body = nn.Sequential()
        for name, stage in stages.items():
            self.body.add_module(name, stage)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode, whatever the mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 activations at the cut [N, ...] of uint8 images [N, C, H, W]."""
        activations: torch.Tensor = self.body(self.preparation(images)).contiguous()
        return activations


class Tail(nn.Module):
    """What lies above a cut, with a head: the federated model.

    Its state holds ``body.STAGE...`` of the stages that are trained, none of those that are not, and
    ``head.weight`` [classes, D] and ``head.bias`` [classes].

    Parameters
    ----------
    stages
        Those above the cut, in their order; perhaps none.
    features
        D, of the last stage.
    classes
        Number of logits.
    """

    def __init__(self, stages: Mapping[str, nn.Module], features: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential()
        for name, stage in stages.items():
            self.body.add_module(name, stage)
        self.head = nn.Linear(features, classes)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Return logits [N, classes] of activations at the cut [N, ...]."""
        logits: torch.Tensor = self.head(self.body(activations))
        return logits


@dataclass(frozen=True, eq=False)
class Cut:
    """A backbone with its weights, cut in two.

    Parameters
    ----------
    frozen
        The part that is computed once. Whoever has a backbone shares it: it is not changed.
    stages
        Names of all stages, in their order.
    trained
        Names of those that are trained: the last ones of ``stages``, perhaps none.
    shape
        Shape of one image's activations at the cut: that of the tail's inputs.
    features
        D, the number of features that the head reads.
    size
        Height and width that images are resized to, in pixels.
    weights_sha256
        Of all weights of the backbone, frozen or not: everybody who takes part must have the same.
    fingerprint
        SHA-256 of what the frozen part computes: its weights, and its activations of fixed images on this
        machine. What is cached for one fingerprint holds for no other.
    """

    frozen: Frozen
    stages: tuple[str, ...]
    trained: tuple[str, ...]
    shape: tuple[int, ...]
    features: int
    size: int
    weights_sha256: str
    fingerprint: str
    _above: Mapping[str, nn.Module]

    @property
    def frozen_bytes(self) -> int:
        """Bytes of the frozen weights: what a device that lacks them has to be sent once."""
        return sum(value.numel() * value.element_size() for value in self.frozen.state_dict().values())

    def tail(self, classes: int) -> Tail:
        """Return a new tail, in training mode: pre-trained stages of its own, and a head drawn by torch.

        Parameters
        ----------
        classes
            Number of logits; 1 for a regression. The head is drawn from torch's generator: see
            :func:`kdfed.seeding.torch_seed`.
        """
        tail = Tail(copy.deepcopy(dict(self._above)), self.features, classes)
        if self._above:
            spare_inputs(tail)  # activations are shared, whatever a stage does with them
        return tail.requires_grad_(True).train()


def split(settings: BackboneSettings) -> Cut:
    """Build a backbone, read its weights, and cut it.

    Parameters
    ----------
    settings
        Which, its weights, and how much of it is trained. The same ones give the same object for as long as
        the file of weights does not change.

    Raises
    ------
    DataError
        If the weights are missing, damaged or of another network, if the network does not take images of the
        size or its stages are not what it is made of, or if it has fewer stages than are to be trained; its
        ``key`` says which of ``model.backbone``, ``model.options``, ``model.weights``, ``model.size``,
        ``model.trainable`` and ``model.batch-norm`` has to change.
    """
    problem = check_backbone(settings)
    if problem is not None:
        raise DataError(problem, "model.backbone")
    if settings.weights.startswith("file:"):
        file: Path | None = user_path(settings.weights.removeprefix("file:")).absolute()
    else:
        how = "download" if settings.weights == "download" else "installed"
        file = find_backbone(settings.backbone).file(how)  # type: ignore[arg-type]
    stamp = None
    if file is not None and file.is_file():
        stamp = file.stat().st_mtime_ns, file.stat().st_size
    return _split(settings.model_dump_json(), file, stamp)


@lru_cache(maxsize=16)
def _split(written: str, file: Path | None, stamp: object) -> Cut:
    settings = BackboneSettings.model_validate_json(written)
    name = settings.backbone
    with torch_seed(0):  # weights that nobody trained are the same for everybody
        network = find_backbone(name).build(settings.options)
    if file is not None:
        if not settings.weights.startswith("file:"):
            check_hash(file)
        fit_state(network.module, read_state(file), str(file), network.renamed)
    size = settings.size or network.size
    below, above = _cut(settings.trainable, network)
    preparation = Preparation(size, network.mean, network.std)
    features = _tried(name, network, preparation)
    frozen = Frozen(preparation, below)
    with _one_thread():  # the same fingerprint however many there are
        probed = frozen(_probe(size))
    fingerprint = hashlib.sha256(json.dumps([torch.__version__, size, network.mean, network.std]).encode())
    fingerprint.update(digest(frozen.state_dict()).encode())
    fingerprint.update(digest({"activations": probed}).encode())
    if settings.batch_norm != "train":
        above = _with_fixed_norms(name, above, probed, wanted=settings.batch_norm is not None)
    return Cut(
        frozen,
        tuple(below) + tuple(above),
        tuple(above),
        tuple(probed.shape[1:]),
        features,
        size,
        digest(network.module.state_dict()),
        fingerprint.hexdigest(),
        above,
    )


def _cut(trainable: str, network: Network) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Return the stages below and above the cut."""
    names = list(network.stages)
    count = {"head": 0, "all": len(names)}.get(trainable)
    if count is None:
        count = int(trainable.removeprefix("last:"))
    if count > len(names):
        raise DataError(
            f"expected at most last:{len(names)} of a backbone with the stages {', '.join(names)}, got "
            f"{trainable}; use fewer, or all",
            "model.trainable",
        )
    cut = len(names) - count
    return ({name: network.stages[name] for name in names[:cut]},
            {name: network.stages[name] for name in names[cut:]})  # fmt: skip


def _with_fixed_norms(
    name: str, stages: dict[str, nn.Module], activations: torch.Tensor, *, wanted: bool
) -> dict[str, nn.Module]:
    """Return the trained stages with the statistics of their BatchNorm layers as they are.

    Layers for which that cannot be stay as they are; with ``wanted`` they are refused.
    """
    where = f"the trained stages of {shown(name)} ({', '.join(stages)})"
    norms = [norm for stage in stages.values() for norm in batch_norms(stage)]
    if not norms:
        if wanted:
            raise DataError(f"has no effect: {where} have no BatchNorm; remove it", "model.batch-norm")
        return stages
    problem = next((text for text in map(unfixable, norms) if text), "")
    fixed = with_fixed_norms(stages)
    try:
        with torch.no_grad():
            same = torch.equal(*(nn.Sequential(*one.values()).eval()(activations) for one in (fixed, stages)))
        if not same:
            fixed, problem = stages, "with frozen ones its features are others"
    except Exception as error:  # code of a user's that looks into its layers
        fixed, problem = stages, one_line(error)
    if wanted and problem:
        raise DataError(
            f"expected BatchNorm layers that can be frozen in {where}; {problem}; use batch-norm: train",
            "model.batch-norm",
        )
    return fixed


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _probe(size: int) -> torch.Tensor:
    """Return fixed images, uint8 [2, 3, size, size]."""
    generator = torch_generator(0, "backbone")
    return torch.randint(256, (_PROBES, 3, size, size), generator=generator).to(torch.uint8)


def _tried(name: str, network: Network, preparation: Preparation) -> int:
    """Run a network and its stages; return the number of its features."""
    size = preparation.size
    try:
        with (
            torch.no_grad(),
            blamed(name, f"expected {shown(name)} to take images of {size} x {size} pixels"),
        ):
            images = preparation(_probe(size))
            network.module.eval()
            found: object = network.module(images.clone())
            staged: object = nn.Sequential(*network.stages.values()).eval()(images)
    except KdfedError as error:
        raise DataError(f"{one_line(error, 500)}; use another model.size", "model.size") from error
    if (
        not isinstance(found, torch.Tensor)
        or found.ndim != 2
        or len(found) != _PROBES
        or not found.is_floating_point()
    ):
        got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise DataError(
            f"expected {shown(name)} to map {_PROBES} images to features of shape ({_PROBES}, D), got {got}",
            "model.backbone",
        )
    if not bool(torch.isfinite(found).all()):
        raise DataError(
            f"expected finite features of {shown(name)}, got NaN or infinity; use other weights",
            "model.weights",
        )
    if not isinstance(staged, torch.Tensor) or not torch.equal(found, staged):
        raise DataError(
            f"expected the stages {', '.join(network.stages)} of {shown(name)}, run one after another, to "
            "give the features of the whole, to the bit, got others; list every part in order, or no stages",
            "model.backbone",
        )
    return int(found.shape[1])
