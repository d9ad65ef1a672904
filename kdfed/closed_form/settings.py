"""The section ``closed-form`` of an arm: which head is solved for, and after which rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

from kdfed.choosing import Choosing
from kdfed.closed_form.distillation import HeadDistillation
from kdfed.closed_form.head import ClosedFormHead
from kdfed.closed_form.registry import HEADS
from kdfed.closed_form.ridge import Ridge
from kdfed.settings import Distinct

if TYPE_CHECKING:
    AnyHead = ClosedFormHead
else:
    AnyHead = HEADS.union

BEFORE: Literal["before-teachers"] = "before-teachers"
"""The refit of the common initial weights, from which teachers and student start."""

WITH: Literal["with-teachers"] = "with-teachers"
"""The statistics of the common initial weights, which come with the teachers."""

When: TypeAlias = int | Literal["before-teachers", "with-teachers"]
"""Of which model a head is solved for."""


class ClosedFormSettings(Choosing):
    """A head in closed form, in one exchange each time."""

    head: AnyHead = Ridge()
    """``ridge``, ``lda`` or ``class-means``, or ``package.module:name``."""
    at: Annotated[
        tuple[Annotated[int, Field(ge=0, le=10**6)] | Literal["before-teachers", "with-teachers"], ...],
        Field(min_length=1),
        Distinct,
    ] = (0,)
    """After which federated rounds the model's head is replaced by the solved one; 0 is the start.
    ``before-teachers``: teachers and student start with it. Each is one exchange more. ``with-teachers``:
    sums over the features of the common initial weights come with the teachers, so round 0 is these weights
    with their head; in round 1 nobody trains, and the head of the student (or the average) is solved for."""
    participants: Literal["all", "sampled"] = "all"
    """Who sends statistics: everybody, which makes the solution exact, or as many as a round samples."""
    distillation: HeadDistillation | None = None
    """Each model with a solved head teaches the one that it replaced, on the transfer set; the rounds go on
    from that. ``{}`` is its defaults. Default: none, they go on from the solved head itself."""
    teacher: bool = False
    """The model with the head of ``before-teachers`` is one more teacher of the ensemble."""

    @property
    def before_teachers(self) -> bool:
        """Whether teachers and student start with the head."""
        return BEFORE in self.at

    @property
    def with_teachers(self) -> bool:
        """Whether sums over the features of the common initial weights come with the teachers."""
        return WITH in self.at

    def server_labels(self) -> frozenset[str]:
        """Return of which of the server's splits it fits or chooses with labels."""
        distilled = self.distillation
        return self.head.server_labels() | (frozenset() if distilled is None else distilled.server_labels())
