"""What a KD method owes: a student from its teachers, on the transfer set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdfed.choosing import Choosing
from kdfed.distill.distillation import ConsolidationResult, Distillation
from kdfed.settings import DistillationSettings, Share, several
from kdfed.task import temperature_problem
from kdfed.thing import Refusal, Thing
from kdfed.transfer_sets import AnyTransferSet, PublicSet
from kdfed.transfer_sets.transfer_set import problem_with_backbones


class KDMethod(DistillationSettings, Choosing, Thing):
    """What every KD method has."""

    transfer: AnyTransferSet = PublicSet()
    """On what teachers and student are compared: ``public`` (the transfer split), ``noise``, ``proxy``
    (images of another data set) or ``generated`` (from the teachers). Only ``public`` has labels, and only
    there ``teachers.upload`` can be ``logits``."""
    init: Literal["random", "common", "averaged"] = "common"
    """The student starts from a draw of its own, from the common initial weights (those of a cold
    start), or from the average of the teachers' weights."""
    shrink: Share = 1.0
    """After the distillation, the student's weights are multiplied by this, in [0, 1]..."""
    perturb: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """...and so many times fresh initial weights are added, see [Shrink and
    perturb](methods/late.md#shrink-and-perturb). Its buffers stay as they are."""
    method: str
    """The KD method."""

    needs_teachers: ClassVar[str] = ""
    """Why it needs the teachers' weights; empty where their logits are enough."""
    reads_labels: ClassVar[bool] = False
    """Whether labels serve it whatever its weights are."""
    searches: ClassVar[str] = ""
    """The method whose temperatures and weights it searches; empty where it is no search."""
    knows: ClassVar[str] = ""
    """What it has that a search over temperatures and weights has not: the end of a study's sentence."""
    uses_validation_labels: ClassVar[bool | None] = None
    """Whether it fits or chooses with labels of the validation split, beside what ``select`` and its ensemble
    do. False: it is not shown them. None, for who does not say: it is shown them, and they count as used."""

    @abstractmethod
    def distil(self, work: Distillation) -> ConsolidationResult:
        """Distil the teachers into the student, in place.

        Parameters
        ----------
        work
            Student, teachers, transfer set, and the loop that trains.

        Raises
        ------
        KdfedError
            If it cannot be carried out.
        """

    def server_labels(self) -> frozenset[str]:
        """Return of which of the server's splits it fits or chooses with labels: validation, transfer."""
        ensemble = getattr(self, "ensemble", None)
        validation = (
            self.uses_validation_labels is not False
            or self.select == "best"
            or getattr(ensemble, "needs_validation", False)
        )
        return frozenset(["validation"] * validation + ["transfer"] * self.labels)

    @classmethod
    def refuses(cls, upload: str, augmented: bool) -> str | None:
        """Say why it cannot be had with such uploads; None where it can: its rows of the valid combinations.

        Parameters
        ----------
        upload
            ``weights`` or ``logits``.
        augmented
            Whether the transfer images are changed.
        """
        if upload == "weights":
            return None
        if cls.needs_teachers:
            return cls.needs_teachers
        return "uploaded logits belong to the images as they are" if augmented else None

    def refusals(self, arm: Any) -> Iterator[Refusal]:
        """Refuse what no KD method can do; a method with refusals of its own yields these first."""
        chosen = self.transfer
        if chosen.in_studies_only:
            sets = arm.families["consolidation.transfer"].members.items()
            held = " or ".join(name for name, kind in sets if not kind.in_studies_only)
            yield Refusal(
                ".transfer",
                f"expected {held}, got {chosen.transfer!r}: the server of a federated run has no "
                "participant's data (a study has)",
            )
        if self.shrink == 0 and self.perturb == 0:
            yield Refusal(
                ".shrink",
                "expected above 0 without perturb, got 0: nothing of the student is left",
                (".perturb",),
            )
        # A method that no regression can have is refused as such, and not for its temperature too.
        task = "classification" if self.needs_classes else arm.data.task
        yield from soft_refusals(self, task, self.reads_labels)
        upload, augmented = arm.teachers.upload, bool(self.augmentation)
        refused = chosen.refuses(upload, self.labels) or self.refuses(upload, augmented)
        if refused is not None:
            yield Refusal(
                "consolidation",
                f"method {self.method!r} with transfer {chosen.transfer!r}, upload {upload!r}, labels "
                f"{self.labels} and augmentation {list(self.augmentation)} is not possible: {refused}",
                ("teachers.upload",),
            )
        yield from self._refusals_of_backbones(arm)

    def _refusals_of_backbones(self, arm: Any) -> Iterator[Refusal]:
        """Refuse what cannot be had where a model has a backbone, whose frozen part is computed once."""
        models = (arm.model, *several(arm.teachers.model))
        if all(model.backbone is None for model in models):
            return
        depends = "model", "teachers.model"
        problem = problem_with_backbones(self.transfer, models)
        if problem is not None:
            yield Refusal(".transfer", problem, depends)
        alike = all(model.reads == arm.model.reads for model in models)
        if not alike and self.needs_teachers:
            yield Refusal(
                ".method",
                f"expected teachers with the student's backbone, cut at the same place, got others with "
                f"method {self.method!r}: {self.needs_teachers}, on what the student reads; use another "
                "method, or remove teachers.model",
                depends,
            )
        yield from view_refusals(self, has_backbone=True)


def view_refusals(settings: DistillationSettings, has_backbone: bool) -> Iterator[Refusal]:
    """Yield what is wrong with changed images: what is frozen is computed once for each of them."""
    if has_backbone and settings.augmentation and settings.views is None:
        yield Refusal(
            ".views",
            "expected a number of views with augmentation and a backbone, whose frozen part is computed once "
            "for each image, got none; name one, or remove augmentation",
            (".augmentation", "model", "teachers.model"),
        )


def soft_refusals(settings: DistillationSettings, task: str, labels_serve: bool = False) -> Iterator[Refusal]:
    """Yield what does not go together in a distillation: temperatures, weights, labels, views.

    Parameters
    ----------
    settings
        With or without ``temperature`` or ``temperatures``, ``weight`` or ``weights``.
    task
        ``classification`` or ``regression``.
    labels_serve
        Whether labels have an effect whatever the weights are.
    """
    for key in ("temperature", "temperatures"):
        value = getattr(settings, key, None)
        problem = None
        if value is not None:
            problem = temperature_problem(task, *(value if isinstance(value, tuple) else (value,)))
        if problem is not None:
            yield Refusal(f".{key}", problem, ("data.task",))
    key = "weights" if hasattr(settings, "weights") else "weight"
    weights = getattr(settings, key, ())
    weights = weights if isinstance(weights, tuple) else (weights,)
    if weights and min(weights) < 1 and not settings.labels:
        yield Refusal(
            f".{key}",
            f"expected 1 on a transfer set without labels, got {min(weights):g}; set labels: true or "
            "remove it",
            (".labels",),
        )
    if settings.labels and not labels_serve and not weights:
        yield Refusal(".labels", "has no effect with this method; set labels: false", (".method",))
    if settings.labels and not labels_serve and weights and min(weights) == 1:
        yield Refusal(".labels", f"has no effect with {key} 1; lower it or set labels: false", (f".{key}",))
    if settings.views is not None and not settings.augmentation:
        yield Refusal(
            ".views", "has no effect without augmentation; name one or remove it", (".augmentation",)
        )
