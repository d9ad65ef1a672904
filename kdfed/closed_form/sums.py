r"""The sums that a closed-form head is made of, and how they travel.

=========== ==================== ======================= ============================================
name        shape                sent as                 what it is
=========== ==================== ======================= ============================================
counts      [C], regression [1]  int64                   examples of each class, :math:`n_c`
sums        [C, D]               ``upload``              sum of the features of each class
\           regression [2, D]    ``upload``              sum of the features, and of label times features
labels      [2], regression only float64                 sum of the labels, and of their squares
gram        [D, D]               ``upload``, a triangle  :math:`\sum_i f_i f_i^\top`
=========== ==================== ======================= ============================================

All are sums over examples: those of two participants are added, in any order, and nobody needs to know who
held what. They are computed and added in float64; only the way to the server is ``float64``, ``float32`` or
``float16``. The symmetric Gram matrix travels as its upper triangle, row by row: D (D + 1) / 2 numbers.

float16 ends at 65,504, so there each feature has a scale, a power of two, with which its sums and products
are near 1: float32 [D] each, ``gram-scale`` and ``sums-scale``. With b bytes a number (8, 4 or 2) a
participant sends

.. math:: 8 C + b\,C D + b\,D (D + 1) / 2 \quad (+\ 8 D \text{ with float16})

bytes of arrays; without the Gram matrix :math:`8 C + b\,C D` (plus 4 D with float16).

Shape suffixes: N examples, D features, C classes, R rows of sums (C, or 2 in a regression).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch

from kdfed.arrays import Spec
from kdfed.errors import KdfedError, shown
from kdfed.task import CLASSIFICATION, Task

Upload: TypeAlias = Literal["float64", "float32", "float16"]
"""The type of the numbers that a participant sends."""

EPSILON: dict[Upload, float] = {name: float(np.finfo(name).eps) for name in ("float64", "float32", "float16")}
"""Relative distance of two numbers that follow one another."""

_AT_ONCE = 4096  # examples that are held in float64, at most


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over examples, of one participant or of many.

    Parameters
    ----------
    counts_C
        Examples of each class, int64 [C]; in a regression their number, [1].
    sums_RD
        Sums of features, float64 [R, D].
    labels
        Sum of the labels and of their squares, float64 [2]; None in a classification.
    gram_DD
        Sum of the outer products of features, float64 [D, D]; None for heads that need none.
    """

    counts_C: torch.Tensor
    sums_RD: torch.Tensor
    labels: torch.Tensor | None = None
    gram_DD: torch.Tensor | None = None

    def __add__(self, other: Sums) -> Sums:
        """Return the sums over the examples of both.

        Raises
        ------
        KdfedError
            If they are not of the same shape and kind.
        """
        mine, theirs = (
            [None if value is None else tuple(value.shape) for value in vars(one).values()]
            for one in (self, other)
        )
        if mine != theirs:
            raise KdfedError(f"expected sums of the shapes {mine} to add, got {theirs}")
        return Sums(
            self.counts_C + other.counts_C,
            self.sums_RD + other.sums_RD,
            None if self.labels is None or other.labels is None else self.labels + other.labels,
            None if self.gram_DD is None or other.gram_DD is None else self.gram_DD + other.gram_DD,
        )

    @property
    def examples(self) -> int:
        """How many examples there are, N."""
        return int(self.counts_C.sum())

    @property
    def dims(self) -> int:
        """How many features there are, D."""
        return self.sums_RD.shape[1]

    @property
    def present_C(self) -> torch.Tensor:  # noqa: N802 - shape suffix
        """Which classes have an example, bool [C]."""
        return self.counts_C > 0

    @property
    def mean_D(self) -> torch.Tensor:  # noqa: N802 - shape suffix
        """The mean of all features, float64 [D]."""
        total_D = self.sums_RD.sum(0) if self.labels is None else self.sums_RD[0]
        return total_D / max(self.examples, 1)

    @property
    def means_CD(self) -> torch.Tensor:  # noqa: N802 - shape suffix
        """The mean of each class, float64 [C, D]; of a class that nobody has the mean of all."""
        means_CD = self.sums_RD / self.counts_C.clamp_min(1).unsqueeze(1)
        return torch.where(self.present_C.unsqueeze(1), means_CD, self.mean_D)

    def centred_gram(self) -> torch.Tensor:
        r"""Return :math:`\sum_i (f_i - \bar f)(f_i - \bar f)^\top`, float64 [D, D]."""
        assert self.gram_DD is not None
        return self.gram_DD - self.examples * torch.outer(self.mean_D, self.mean_D)

    def within_gram(self) -> torch.Tensor:
        r"""Return :math:`\sum_i (f_i - \mu_{y_i})(f_i - \mu_{y_i})^\top`, float64 [D, D]."""
        assert self.gram_DD is not None
        means_CD = self.means_CD
        return self.gram_DD - (self.counts_C.double().unsqueeze(1) * means_CD).T @ means_CD

    def noise(self, upload: Upload) -> float:
        """Return the size of eigenvalues of the Gram matrix that rounding for the upload leaves in doubt.

        Independent rounding of every number gives a matrix whose norm is about the largest norm of a row
        times the distance of two numbers.
        """
        if self.gram_DD is None:
            return 0.0
        return EPSILON[upload] * float(self.gram_DD.norm(dim=1).max())


def sums_of(
    features_ND: torch.Tensor, labels_N: torch.Tensor, classes: int, task: Task, *, gram: bool = True
) -> Sums:
    """Return the sums over examples, on the CPU.

    Parameters
    ----------
    features_ND
        Of any float type, on any device, [N, D]; N may be 0.
    labels_N
        Classes, int64 [N], or standardised numbers.
    classes
        C; in a regression 1.
    task
        What is learnt.
    gram
        Whether the Gram matrix is needed.

    Raises
    ------
    KdfedError
        If features are not a finite matrix with a label each, or a label is no class.
    """
    if features_ND.ndim != 2 or labels_N.shape != features_ND.shape[:1]:
        raise KdfedError(
            "expected features [N, D] with one label each, got features of shape "
            f"{tuple(features_ND.shape)} and labels of shape {tuple(labels_N.shape)}"
        )
    finite_N = torch.isfinite(features_ND).all(1)
    if not bool(finite_N.all()):
        raise KdfedError(
            f"expected finite features, got infinity or NaN in {int((~finite_N).sum())} of {len(labels_N)} "
            "examples; look at the model that makes them and at the inputs"
        )
    classification = task is CLASSIFICATION
    if classification and len(labels_N) and not 0 <= int(labels_N.min()) <= int(labels_N.max()) < classes:
        raise KdfedError(
            f"expected labels from 0 to {classes - 1}, got {int(labels_N.min())} to {int(labels_N.max())}"
        )
    dims, rows = features_ND.shape[1], classes if classification else 2
    sums_RD = torch.zeros(rows, dims, dtype=torch.float64)
    gram_DD = torch.zeros(dims, dims, dtype=torch.float64) if gram else None
    labels_N = labels_N.cpu()
    numbers_N = labels_N.double()
    for start in range(0, len(labels_N), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        some_ND = features_ND[part].detach().cpu().double()
        if classification:
            sums_RD.index_add_(0, labels_N[part], some_ND)
        else:
            sums_RD += torch.stack((some_ND.sum(0), numbers_N[part] @ some_ND))
        if gram_DD is not None:
            gram_DD += some_ND.T @ some_ND
    if classification:
        return Sums(torch.bincount(labels_N, minlength=classes), sums_RD, None, gram_DD)
    counts_C = torch.tensor([len(labels_N)])
    return Sums(counts_C, sums_RD, torch.stack((numbers_N.sum(), numbers_N.square().sum())), gram_DD)


# ----------------------------------------------------------------------------- on the way


def spec_of_sums(dims: int, classes: int, task: Task, upload: Upload, *, gram: bool = True) -> Spec:
    """Return the shapes and types of what a participant sends.

    Parameters
    ----------
    dims, classes
        D and C.
    task
        What is learnt.
    upload
        Type of the numbers.
    gram
        Whether there is a Gram matrix.
    """
    classification = task is CLASSIFICATION
    spec: Spec = {"counts": ((classes if classification else 1,), "int64")}
    spec["sums"] = ((classes if classification else 2, dims), upload)
    if not classification:
        spec["labels"] = ((2,), "float64")
    if gram:
        spec["gram"] = ((dims * (dims + 1) // 2,), upload)
    if upload == "float16":
        spec |= {f"{key}-scale": ((dims,), "float32") for key in ("sums", "gram") if key in spec}
    return spec


def encoded(sums: Sums, upload: Upload) -> dict[str, np.ndarray]:
    """Return sums as they travel: see :func:`spec_of_sums`.

    Raises
    ------
    KdfedError
        If a number is too large for the type.
    """
    arrays: dict[str, np.ndarray] = {"counts": sums.counts_C.numpy()}
    if sums.labels is not None:
        arrays["labels"] = sums.labels.numpy()
    sums_RD, gram_DD = sums.sums_RD, sums.gram_DD
    if upload == "float16":
        sums_scale_D = _power_of_two(sums_RD.abs().amax(0))
        sums_RD = sums_RD / sums_scale_D
        arrays["sums-scale"] = sums_scale_D.float().numpy()
        if gram_DD is not None:
            gram_scale_D = _power_of_two(gram_DD.diagonal().clamp_min(0).sqrt())
            gram_DD = gram_DD / torch.outer(gram_scale_D, gram_scale_D)
            arrays["gram-scale"] = gram_scale_D.float().numpy()
    with np.errstate(over="ignore"):
        arrays["sums"] = sums_RD.numpy().astype(upload)
        if gram_DD is not None:
            rows, columns = torch.triu_indices(*gram_DD.shape)
            arrays["gram"] = gram_DD[rows, columns].numpy().astype(upload)
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise KdfedError(
                f"expected features whose sums and products can be sent as {upload}, got larger ones "
                f"({key}); normalise the features or set upload: float64"
            )
    return arrays


def decoded(arrays: Mapping[str, np.ndarray]) -> Sums:
    """Return the sums that arrived, in float64.

    Parameters
    ----------
    arrays
        Checked against :func:`spec_of_sums`.
    """
    values = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
    sums_RD, triangle = values["sums"].double(), values.get("gram")
    if "sums-scale" in values:
        sums_RD = sums_RD * values["sums-scale"].double()
    gram_DD = None
    if triangle is not None:
        dims = sums_RD.shape[1]
        rows, columns = torch.triu_indices(dims, dims)
        gram_DD = torch.zeros(dims, dims, dtype=torch.float64)
        gram_DD[rows, columns] = gram_DD[columns, rows] = triangle.double()
        if "gram-scale" in values:
            scale_D = values["gram-scale"].double()
            gram_DD *= torch.outer(scale_D, scale_D)
    return Sums(values["counts"], sums_RD, values.get("labels"), gram_DD)


def problem_with_sums(
    arrays: Mapping[str, np.ndarray],
    upload: Upload,
    examples: int,
    most: float = math.inf,
    most_label: float = math.inf,
) -> str | None:
    r"""Say whether arrays cannot be the sums over so many examples; None when they can.

    Of true sums no count is negative, and with :math:`G = \sum_i f_i f_i^\top` Cauchy and Schwarz know that
    :math:`G_{ij}^2 \le G_{ii} G_{jj}` and that the sum s of feature i over n examples keeps to
    :math:`s^2 \le n G_{ii}`. How large features may be, no law knows: that is for the server to say.

    Parameters
    ----------
    arrays
        Checked against :func:`spec_of_sums`, so their shapes and types are right and they are finite.
    upload
        Type of the numbers: their rounding is forgiven.
    examples
        How many there are said to be, N.
    most
        The largest mean of the squared lengths of features. Without a Gram matrix only that of the classes'
        means is known, which is no larger.
    most_label
        The largest mean of the squares of labels.
    """
    counts = arrays["counts"]
    if (counts < 0).any() or sum(counts.tolist()) != examples:
        return f"expected counts of {examples} examples in all, got {shown(counts.tolist())}"
    for key in ("sums-scale", "gram-scale"):
        if key in arrays and not (arrays[key] > 0).all():
            return f"expected scales above 0, got {float(arrays[key].min()):g} ({key})"
    sums, count = decoded(arrays), max(examples, 1)
    slack = 8 * EPSILON[upload] + count * EPSILON["float64"]  # on the way, and as they are added
    size_RD = sums.sums_RD.abs()
    if sums.labels is None and bool((size_RD[~sums.present_C] > 0).any()):
        return "expected sums of 0 for classes without an example, got others"
    if sums.labels is not None:
        total, squares = sums.labels.tolist()
        if squares < 0 or abs(total) > math.sqrt(examples * squares) * (1 + 1e-9):
            return (
                f"expected the sums of {examples} labels and of their squares, got {total:g} and {squares:g}"
            )
        if not squares / count <= most_label:
            return _too_large("labels", squares / count, most_label)
    weights_R = (
        sums.counts_C.double() if sums.labels is None else torch.stack((sums.counts_C[0], sums.labels[1]))
    )
    if sums.gram_DD is None:
        squares_R = sums.sums_RD.square().sum(1) / weights_R.clamp_min(1e-12)
        least = float(squares_R.sum() if sums.labels is None else squares_R.max()) / count
        return None if least <= most else _too_large("features", least, most)
    squares_D = sums.gram_DD.diagonal()
    if bool((squares_D < 0).any()):
        return f"expected sums of squares on the diagonal of the Gram matrix, got {float(squares_D.min()):g}"
    if not float(squares_D.sum()) / count <= most:
        return _too_large("features", float(squares_D.sum()) / count, most)
    lengths_D = squares_D.sqrt()
    if bool((sums.gram_DD.abs() > (1 + slack) * torch.outer(lengths_D, lengths_D)).any()):
        return "expected a Gram matrix, got products that are larger than the features allow"
    most_RD = torch.outer(weights_R.sqrt(), lengths_D)
    if bool((size_RD > (1 + slack) * most_RD + slack * size_RD.amax(0)).any()):
        return "expected sums of features, got larger ones than the Gram matrix allows"
    return None


def _too_large(what: str, squares: float, most: float) -> str:
    """Say that the mean of squares is above what it may be."""
    size, allowed = math.sqrt(squares), math.sqrt(most)
    return f"expected {what} of size {allowed:.3g} at most, in root mean square, got {size:.3g}"


def _power_of_two(size_D: torch.Tensor) -> torch.Tensor:
    """Return the largest powers of two that are at most so large, float64 [D]; 1 for 0."""
    exponents_D = torch.frexp(size_D).exponent - 1
    return torch.where(size_D > 0, torch.exp2(exponents_D.clamp(-120, 120).double()), 1.0)
