r"""What a task is: its loss, its score, its soft target and what it costs to miss it.

============== =================================== ====================================
\              classification                      regression
============== =================================== ====================================
outputs        logits [N, C]                       standardised values [N, 1]
labels         classes, int64 [N]                  standardised numbers, float32 [N]
loss           cross entropy, in nats              squared error
score          accuracy                            R^2, the coefficient of determination
soft target    an ensemble of :mod:`.ensembles`    the mean of the teachers' outputs
soft loss      :math:`(1 - w)` CE + :math:`w T^2`  :math:`(1 - w)(s - y)^2 +
               KL                                  w (s - \bar t)^2`
peers (DML)    CE + mean KL from each peer         :math:`(s - y)^2` + mean squared
                                                   distance to each peer
============== =================================== ====================================

Everything else (partitions, training, strategies, records) is the same for both, and asks the task.

A number has no classes, so there is no dark knowledge that a temperature could bring out: the temperature of
a regression is 1. Ours: a weight w with the same meaning as in classification, the mean over teachers, and
mutual learning by squared distances.

Shape suffixes: K teachers, N examples, C outputs.

References
----------
Saputra et al. 2019, "Distilling Knowledge From a Deep Pose Regressor Network", arXiv 1908.00858: the
blend of squared errors to the label and to the teacher.
Park et al. 2023, "Towards Understanding Ensemble Distillation in Federated Learning", ICML: students that
regress on the mean of the participants' predictions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, final

import torch
from torch.nn import functional

from kdfed.ensembles.ensemble import Ensemble
from kdfed.errors import KdfedError, shown
from kdfed.losses import kd_losses, peer_losses

WORST = -1e6
"""The least score of an example, also of outputs that are not finite, so that every score is a number."""


class Task(ABC):
    """What is learnt. Implementations owe that nothing in a loss mixes examples."""

    name: ClassVar[Literal["classification", "regression"]]
    description: ClassVar[str]
    metric: ClassVar[Literal["accuracy", "r2"]]
    """Name of the score in ``summary.json``."""
    metric_word: ClassVar[str]
    """What people read for it."""

    @abstractmethod
    def losses(self, outputs_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """Return the loss of every example, [N]."""

    @abstractmethod
    def scores(self, outputs_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """Return what every example adds to the score, float64 [N], so that their mean is the score."""

    @abstractmethod
    def target(
        self,
        ensemble: Ensemble,
        outputs_KNC: torch.Tensor,
        temperature: float,
        scores_KC: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return what several teachers teach together, [N, C].

        Raises
        ------
        KdfedError
            If the task does not have this ensemble, or this temperature.
        """

    @abstractmethod
    def soft_losses(
        self,
        outputs_NC: torch.Tensor,
        target_NC: torch.Tensor,
        labels_N: torch.Tensor | None,
        temperature: float,
        weight: float,
    ) -> torch.Tensor:
        """Return the distillation loss of every example, [N].

        Parameters
        ----------
        outputs_NC
            The student's.
        target_NC
            Of :meth:`target`; no gradient flows into it.
        labels_N
            Or None on an unlabelled transfer set.
        temperature
            T, above 0.
        weight
            w in [0, 1]; 0 is :meth:`losses`.
        """

    @abstractmethod
    def peer_losses(
        self, outputs_NC: Sequence[torch.Tensor], labels_N: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Return what each of several models that teach each other minimises on a batch: a scalar each."""

    def loss(self, outputs_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
        """Return the mean loss of examples, at least one."""
        return float(self.losses(outputs_NC, labels_N).mean())

    def score(self, outputs_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
        """Return how good outputs are, at most 1; higher is better."""
        return float(self.scores(outputs_NC, labels_N).mean())


@final
class Classification(Task):
    """One of C classes; see the module."""

    name = "classification"
    description = "one of several classes: cross entropy, accuracy"
    metric = "accuracy"
    metric_word = "accuracy"

    def losses(self, outputs_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy of every example, [N], in nats."""
        return functional.cross_entropy(outputs_NC, labels_N, reduction="none")

    def loss(self, outputs_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
        """Return the mean cross entropy, in nats."""
        return float(functional.cross_entropy(outputs_NC, labels_N))

    def scores(self, outputs_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """Return 1 where the largest logit (or probability) is the label's, else 0."""
        return (outputs_NC.argmax(1) == labels_N).double()

    def target(
        self,
        ensemble: Ensemble,
        outputs_KNC: torch.Tensor,
        temperature: float,
        scores_KC: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the probabilities [N, C] of the ensemble."""
        target_NC = ensemble.target(outputs_KNC, temperature, scores_KC)
        if not isinstance(target_NC, torch.Tensor) or target_NC.shape != outputs_KNC.shape[1:]:
            got = tuple(target_NC.shape) if isinstance(target_NC, torch.Tensor) else shown(target_NC)
            raise KdfedError(
                f"ensemble {ensemble.ensemble!r}: expected probabilities of shape "
                f"{tuple(outputs_KNC.shape[1:])}, got {got}"
            )
        return target_NC

    def soft_losses(
        self,
        outputs_NC: torch.Tensor,
        target_NC: torch.Tensor,
        labels_N: torch.Tensor | None,
        temperature: float,
        weight: float,
    ) -> torch.Tensor:
        """Return :func:`kdfed.losses.kd_losses`, [N], in nats."""
        return kd_losses(outputs_NC, target_NC, labels_N, temperature, weight)

    def peer_losses(
        self, outputs_NC: Sequence[torch.Tensor], labels_N: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Return :func:`kdfed.losses.peer_losses`, in nats."""
        return peer_losses(outputs_NC, labels_N)


@final
class Regression(Task):
    """A number; labels are standardised, so a loss of 1 is that of the mean. See the module.

    Examples
    --------
    >>> task, labels = Regression(), torch.tensor([0.0, 1.0, 2.0])
    >>> round(task.score(torch.tensor([[0.0], [1.0], [1.0]]), labels), 3)  # 1 - 1 / 2
    0.5
    """

    name = "regression"
    description = "a number: squared error, R^2"
    metric = "r2"
    metric_word = "R²"

    def losses(self, outputs_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        """Return the squared error of every example, [N], in variances of the label."""
        return _squared(outputs_NC, labels_N.unsqueeze(1))

    def scores(self, outputs_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        r"""Return :math:`1 - (s_i - y_i)^2 / \mathrm{var}(y)` of every example, at least :data:`WORST`.

        The mean is :math:`R^2 = 1 - \sum_i (s_i - y_i)^2 / \sum_i (y_i - \bar y)^2`. Of labels that are all
        the same there is none: then an exact output scores 1 and any other 0, as in scikit-learn.
        """
        labels_N = labels_N.double()
        errors_N = self.losses(outputs_NC.double(), labels_N)
        variance = labels_N.var(correction=0)
        if variance == 0:
            return (errors_N == 0).double()
        return torch.nan_to_num(1 - errors_N / variance, nan=WORST, neginf=WORST).clamp_min(WORST)

    def target(
        self,
        ensemble: Ensemble,
        outputs_KNC: torch.Tensor,
        temperature: float,
        scores_KC: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the mean of the teachers' outputs, [N, 1]."""
        if ensemble.needs_classes:
            raise KdfedError(
                f"ensemble {ensemble.ensemble!r} needs classes, which a regression does not have; use "
                "mean-logits"
            )
        _require_one(temperature)
        return outputs_KNC.mean(0)

    def soft_losses(
        self,
        outputs_NC: torch.Tensor,
        target_NC: torch.Tensor,
        labels_N: torch.Tensor | None,
        temperature: float,
        weight: float,
    ) -> torch.Tensor:
        r"""Return :math:`(1 - w)(s - y)^2 + w (s - \bar t)^2` of every example, [N]."""
        _require_one(temperature)
        soft_N = weight * _squared(outputs_NC, target_NC.detach())
        return soft_N if labels_N is None else (1 - weight) * self.losses(outputs_NC, labels_N) + soft_N

    def peer_losses(
        self, outputs_NC: Sequence[torch.Tensor], labels_N: torch.Tensor | None
    ) -> list[torch.Tensor]:
        r"""Return the means of :math:`(s_i - y)^2 + \frac{1}{M - 1} \sum_{j \ne i} (s_i - s_j)^2` over N."""
        result = []
        for own, values_NC in enumerate(outputs_NC):
            peers = [peer.detach() for place, peer in enumerate(outputs_NC) if place != own]
            loss = torch.stack([_squared(values_NC, peer).mean() for peer in peers]).mean()
            result.append(loss if labels_N is None else loss + self.losses(values_NC, labels_N).mean())
        return result


def _squared(outputs_NC: torch.Tensor, wanted_NC: torch.Tensor) -> torch.Tensor:
    return (outputs_NC - wanted_NC).square().sum(1)


def temperature_problem(task: str, *temperatures: float) -> str | None:
    """Say what is wrong with temperatures; a regression has the temperature 1 only."""
    if task == "classification" or temperatures == (1.0,):
        return None
    wanted, got = "1.0", f"{temperatures[0]:g}"
    if len(temperatures) > 1:
        wanted, got = "[1.0]", str(list(temperatures))
    return f"expected {wanted} with data.task 'regression', whose outputs have no softmax, got {got}; set it"


def _require_one(temperature: float) -> None:
    if temperature != 1:
        raise KdfedError(
            f"expected temperature 1 in a regression, whose outputs have no softmax, got {temperature:g}"
        )


CLASSIFICATION = Classification()
REGRESSION = Regression()

TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, REGRESSION)}
"""What can stand in ``data.task``."""
