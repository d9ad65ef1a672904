"""Saved models that can be used again: what a model file says beside its weights, and what reads it.

A ``.safetensors`` file can hold texts beside its tensors. kdfed writes one, ``kdfed``: a :class:`Card`, as
JSON. The tensors, and so their hash, are those of a file without it.

A file is data, and reading one runs nobody's code but kdfed's and its dependencies'. A model of a user's is
code, of which the file holds the name alone, and a file from somewhere can hold any name (``os:system``): so
whoever loads it says that name too.

Shape suffixes: N examples, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import nn

from kdfed.arrays import spec_of
from kdfed.backbones import Cut, compute, is_shipped_backbone
from kdfed.data import Normalisation, PreparedData
from kdfed.device import resolve_device
from kdfed.errors import ConfigError, DataError, KdfedError, one_line, shown
from kdfed.models import State, build_model, check_model, device_of, find_model, is_shipped, state_of
from kdfed.named import is_named
from kdfed.paths import user_path
from kdfed.reading import cut_of
from kdfed.records import load_model, load_start, serialised, write_atomically
from kdfed.settings import (
    ColumnSettings,
    DataSettings,
    ModelSettings,
    PositiveInt,
    Settings,
    Text,
    with_batch_norm,
)
from kdfed.task import CLASSIFICATION, TASKS, Task
from kdfed.train import predict

KEY = "kdfed"
"""The metadata of a model file that kdfed writes. One key: safetensors writes several in any order."""

FORMAT: Literal[1] = 1
"""What this release writes and reads."""

MOST_NUMBERS = 2**26
"""Of one input: to try a model, memory is taken for some, and a file can say any shape."""

_Positive = Annotated[float, Field(gt=0)]


class Card(Settings):
    """What a model file says of the model beside its weights."""

    format: Literal[1] = 1
    """Of these keys."""
    kdfed: Text
    """The release that wrote it."""
    task: Literal["classification", "regression"]
    """What was learnt."""
    model: ModelSettings
    """Name and options."""
    input_shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=3)]
    """``[channels, height, width]`` of uint8 images, or ``[features]``."""
    resized: bool = False
    """Whether images were converted and resized to that shape (``data.shape``)."""
    classes: tuple[str, ...] = ()
    """Names in the order of the outputs; none in a regression."""
    mean: tuple[float, ...]
    """What is subtracted from each channel, of images after scaling to [0, 1], or from each feature..."""
    std: tuple[_Positive, ...]
    """...and what it is divided by then."""
    label_mean: float = 0.0
    """Of a regression: an output is multiplied by ``label-std``, and this is added; 0 and 1 elsewhere."""
    label_std: _Positive = 1.0
    """See ``label-mean``."""
    columns: ColumnSettings | None = None
    """Which columns of a table were the inputs, in their order, and the label."""
    backbone_sha256: str = ""
    """Of all weights of the model's backbone, which the file does not hold: it has those that were trained.
    Empty without a backbone."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        channels = self.input_shape[0]
        if len(self.input_shape) == 2 or {len(self.mean), len(self.std)} != {channels}:
            raise ValueError("expected a mean and a std for each channel or feature")
        if math.prod(self.input_shape) > MOST_NUMBERS:
            raise ValueError(f"expected inputs of at most {MOST_NUMBERS} numbers")
        if bool(self.classes) != (self.task == "classification"):
            raise ValueError("expected classes in a classification, and there alone")
        return self

    @classmethod
    def of(cls, model: ModelSettings, settings: DataSettings, data: PreparedData) -> Card:
        """Describe a model that was trained on data.

        Parameters
        ----------
        model
            Name and options.
        settings
            The section ``data``.
        data
            What was made of it: the normalisation, whatever ``auto`` stood for, is read here.
        """
        cut = cut_of(model)
        return cls(
            kdfed=version("kdfed"),
            task=data.task.name,
            model=model,
            input_shape=data.input_shape,
            resized=settings.shape is not None,
            classes=data.dataset.class_names,
            mean=data.normalisation.mean,
            std=data.normalisation.std,
            label_mean=data.label_mean,
            label_std=data.label_std,
            columns=data.dataset.columns,
            backbone_sha256="" if cut is None else cut.weights_sha256,
        )

    def with_weights(self, weights: str) -> Card:
        """Return the same of a machine on which the weights of the backbone are elsewhere.

        Raises
        ------
        DataError
            If there is no backbone, or that is no place for weights.
        """
        try:
            model = {**self.model.model_dump(mode="json"), "weights": weights}
            return self.model_copy(update={"model": ModelSettings.model_validate(model)})
        except ValidationError as error:
            raise DataError(
                f"expected installed, download or file:PATH, for a model on a backbone, got {shown(weights)} "
                f"for {self.model.title}",
                "weights",
            ) from error

    def metadata(self) -> dict[str, str]:
        """Return what stands in a model file."""
        return {KEY: self.model_dump_json()}

    @property
    def outputs(self) -> int:
        """Number of outputs: the classes, or 1."""
        return len(self.classes) or 1


@dataclass(frozen=True, eq=False)
class Predictor:
    """A trained model, and all that it takes to use it. :func:`load` makes one.

    Parameters
    ----------
    card
        What the file says of it.
    model
        Takes normalised inputs, or the activations at the cut.
    cut
        The backbone; None of a model without one.
    """

    card: Card
    model: nn.Module
    cut: Cut | None = None

    @property
    def task(self) -> Task:
        """What was learnt."""
        return TASKS[self.card.task]

    def outputs(self, inputs: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return the model's outputs.

        Parameters
        ----------
        inputs
            As data sets store them, not normalised: uint8 [N, channels, height, width], or numbers
            [N, features].

        Returns
        -------
        torch.Tensor
            float32 on the CPU: logits [N, C], or standardised values [N, 1].

        Raises
        ------
        DataError
            If they have another shape or dtype, or they or the model's answers are not finite in float32.
        """
        stored = self._stored(inputs)
        if len(stored) == 0:
            return torch.empty(0, self.card.outputs)
        if self.cut is not None:
            outputs = predict(self.model, compute(self.cut, stored, device_of(self.model)))
        else:
            outputs = predict(self.model, Normalisation(self.card.mean, self.card.std).apply(stored))
        broken = (~torch.isfinite(outputs).all(1)).nonzero()
        if len(broken):
            raise DataError(
                f"expected finite outputs, the model gives infinity or NaN for row {int(broken[0])} of the "
                "inputs: that row, or a weight, is too large; look at both"
            )
        return outputs

    def probabilities(self, inputs: np.ndarray | torch.Tensor) -> np.ndarray:
        """Return the probability of each class, float32 [N, C].

        Raises
        ------
        DataError
            As :meth:`outputs`.
        KdfedError
            If the model is one of a regression.
        """
        if self.task is not CLASSIFICATION:
            raise KdfedError("expected a model of classes, got one of a regression; use predict")
        found: np.ndarray = self.outputs(inputs).softmax(1).numpy()
        return found

    def predict(self, inputs: np.ndarray | torch.Tensor) -> np.ndarray:
        """Return the name of the likeliest class of each example, [N]; of a regression the number, float64.

        Raises
        ------
        DataError
            As :meth:`outputs`.
        """
        return self.named(self.outputs(inputs))

    def named(self, outputs_NC: torch.Tensor) -> np.ndarray:
        """Return what outputs say, [N]: see :meth:`predict`."""
        if self.task is CLASSIFICATION:
            names: np.ndarray = np.array(self.card.classes)[outputs_NC.argmax(1).numpy()]
            return names
        return outputs_NC[:, 0].double().numpy() * self.card.label_std + self.card.label_mean

    def score(self, outputs_NC: torch.Tensor, labels_N: np.ndarray) -> float:
        """Return the accuracy of outputs, or R^2.

        Parameters
        ----------
        outputs_NC
            Of :meth:`outputs`, at least one.
        labels_N
            int64 places in ``card.classes``, or the numbers as stored.
        """
        labels = torch.tensor(labels_N)
        if self.task is not CLASSIFICATION:
            labels = (labels.double() - self.card.label_mean) / self.card.label_std
        return self.task.score(outputs_NC, labels)

    def _stored(self, inputs: np.ndarray | torch.Tensor) -> np.ndarray:
        """Return inputs as a data set stores them, or refuse them."""
        array: np.ndarray = (
            inputs.detach().cpu().numpy() if isinstance(inputs, torch.Tensor) else np.asarray(inputs)
        )
        shape = self.card.input_shape
        is_images = len(shape) == 3
        wanted = f"{'uint8 images' if is_images else 'numbers'} [N, {', '.join(map(str, shape))}]"
        right_kind = array.dtype == np.uint8 if is_images else array.dtype.kind in "iuf"
        if array.shape[1:] != shape or array.ndim == 0 or not right_kind:
            raise DataError(
                f"expected inputs as they are stored, {wanted}, got {array.dtype} {list(array.shape)}; they "
                "are normalised here"
            )
        if not is_images:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            broken = np.argwhere(~np.isfinite(array))
            if len(broken):
                row, feature = map(int, broken[0])
                raise DataError(
                    f"expected inputs that are finite in float32, feature {feature} of row {row} is not"
                )
        return array


def save(path: str | Path, state: Mapping[str, torch.Tensor], card: Card) -> None:
    """Write a model that :func:`load` reads.

    Raises
    ------
    RunFolderError
        If the file cannot be written.
    """
    write_atomically(Path(path), serialised(state, card.metadata()), sync=True)


def load(path: str | Path, *, model: str = "", weights: str = "", device: str = "auto") -> Predictor:
    """Read a model that a run left, ready to use.

    Parameters
    ----------
    path
        Such as ``models/<arm>-<seed>.safetensors`` of a run folder.
    model
        The name of its model or backbone, where that is code of a user's (``package.module:name``): it is
        imported and called, so it must be what the reader expects, and not only what the file says.
    weights
        Where the weights of its backbone are here, as ``model.weights`` of an experiment: they must be those
        that it was trained on. Default: where they were then.
    device
        As the key ``device`` of an experiment.

    Raises
    ------
    DataError
        If the file cannot be read, does not say what it is, or its weights are those of another model; its
        ``key`` says which option has to change, where one has.

    Examples
    --------
    ::

        from kdfed.saved import load

        model = load("runs/quickstart/models/consolidated-0.safetensors")
        digits = model.predict(images)  # uint8 [N, 1, 14, 14], as stored
    """
    path = user_path(path)
    card = read_card(path)
    card = card.with_weights(weights) if weights else card
    where, backbone = resolve_device(device), card.model.backbone
    name = card.model.name if backbone is None else backbone
    shipped = is_shipped(name) if backbone is None else is_shipped_backbone(name)
    theirs = is_named(name) and not shipped
    if model not in ("", name):
        raise DataError(f"expected a model {shown(model)} in {path}, got {shown(name)}", "model")
    if theirs and not model:
        raise DataError(
            f"{path} names somebody's code as its model, {shown(name)}, which would be imported and called: "
            "if that is what you expect, say the name too (kdfed predict --model, or load(..., model=...))",
            "model",
        )
    state = load_model(path)
    problem = check_model(card.model)
    if problem is None and not theirs and backbone is None:
        problem = _problem_with_size(card, state)
    if problem is None:
        try:
            made = build_model(card.model, card.input_shape, card.outputs, seed=0)
        except ConfigError as error:
            problem = "; ".join(mistake.message for mistake in error.mistakes)
    if problem is not None:
        hint = "; start where its module is, or put its folder on PYTHONPATH" if theirs else ""
        raise DataError(f"the model of {path} cannot be built: {problem}{hint}", "model")
    cut = cut_of(card.model)
    if cut is not None and cut.weights_sha256 != card.backbone_sha256:
        raise DataError(
            f"expected the weights of {shown(name)} on which the model of {path} was trained, SHA-256 "
            f"{card.backbone_sha256[:12]}, got others here, {cut.weights_sha256[:12]}: install the version, "
            "or give the file of weights, that it was trained on",
            "model.weights",
        )
    made.load_state_dict(load_start(path, spec_of(state_of(made))))
    return Predictor(card, made.eval().to(where), cut)


def has_card(path: str | Path) -> bool:
    """Tell whether a ``.safetensors`` file says anything of its model.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    return _text_in(path) is not None


def read_card(path: str | Path) -> Card:
    """Return what a model file says of its model.

    Raises
    ------
    DataError
        If it cannot be read, or says nothing that this release understands.
    """
    text = _text_in(path)
    if text is None:
        raise DataError(
            f"expected a model that says how it is used (metadata {KEY!r}), {path} does not: an earlier "
            "release or another program wrote it; run the experiment again, or read its weights alone "
            "(kdfed.records.load_model)"
        )
    try:
        return Card.model_validate_json(_upgraded(text), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        first: Any = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(
            f"expected the metadata {KEY!r} of {path} as kdfed writes it in format {FORMAT}, {key} is wrong: "
            f"{one_line(first['msg'])}; upgrade kdfed if a later release wrote it"
        ) from error


def _upgraded(text: str) -> str:
    """Return a card as this release writes it; what is no card, whoever reads it refuses."""
    with suppress(ValueError, RecursionError):
        card = json.loads(text)
        if isinstance(card, dict) and isinstance(card.get("model"), dict):
            return json.dumps({**card, "model": with_batch_norm(card["model"])})
    return text


def _text_in(path: str | Path) -> str | None:
    if not user_path(path).is_file():
        raise DataError(f"expected a readable .safetensors file, got {path}, which is no file")
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(KEY)
    except (OSError, SafetensorError) as error:
        raise DataError(f"expected a readable .safetensors file, got {path}: {one_line(error)}") from error


def _problem_with_size(card: Card, state: State) -> str | None:
    """Say why weights cannot be those of a model, before memory for it is taken: options can ask for any."""
    with suppress(Exception), torch.device("meta"):  # what is wrong otherwise, whoever builds it says
        bare = find_model(card.model.name).build(card.input_shape, card.outputs, **card.model.options)
        needed = sum(math.prod(values.shape) for values in bare.state_dict().values())
        held = sum(values.numel() for values in state.values())
        if needed > held:
            return f"it has {needed} weights and buffers, the file holds {held}"
    return None
