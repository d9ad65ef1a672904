from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from kdfed.closed_form import Linear, Ridge, Sums
from kdfed.closed_form.ridge import equations
from kdfed.data import Examples
from kdfed.errors import KdfedError
from kdfed.task import CLASSIFICATION, REGRESSION
from tests.kdfed.closed_form.examples import (
    CLASSES,
    numbers_for,
    partitions_of,
    solved,
    some_examples,
    summed,
)

PENALTIES = [1e-6, 1e-3, 1.0, 1e3, 1e9]


def exact(**changes: object) -> Ridge:
    return Ridge(upload="float64", **changes)


def slow_ridge(features: torch.Tensor, wanted: torch.Tensor, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Least squares on the augmented matrix: a row sqrt(lambda) for each weight, none for the bias."""
    x, y = features.double().numpy(), wanted.double().numpy()
    dims = x.shape[1]
    design = np.block([[x, np.ones((len(x), 1))], [math.sqrt(penalty) * np.eye(dims), np.zeros((dims, 1))]])
    found = np.linalg.lstsq(design, np.vstack([y, np.zeros((dims, y.shape[1]))]), rcond=None)[0]
    return found[:dims].T, found[dims]


def near(one: Linear, two: Linear, relative: float = 1e-8) -> None:
    size = max(float(two.weight_CD.abs().max()), 1e-12)
    torch.testing.assert_close(one.weight_CD, two.weight_CD, rtol=0, atol=relative * size)
    most = max(float(two.bias_C.abs().max()), 1e-3)
    torch.testing.assert_close(one.bias_C, two.bias_C, rtol=0, atol=relative * most)


def test_worked_ridge() -> None:
    """Class 0 at (0, 0) and (2, 0), class 1 at (4, 0) and (2, 0); the mean is (2, 0), G = diag(8, 0).
    B of class 1 is sum of (y - 1/2) (f - mean) = -1/2 (-2) + 1/2 (2) = 2, so with lambda = 2 its weight is
    2 / (8 + 2) = 1/5 and its bias 1/2 - 2/5 = 1/10. Class 0 has the opposite weight and 1/2 + 2/5 = 9/10.
    """
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [2.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])
    head = solved(exact(penalty=2.0), features, labels, classes=2)
    expected = torch.tensor([[-0.2, 0.0], [0.2, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(head.weight_CD, expected)
    torch.testing.assert_close(head.bias_C, torch.tensor([0.9, 0.1], dtype=torch.float64))
    assert head.chosen == 2.0


def test_worked_ridge_of_numbers() -> None:
    """Features 0 and 2 with labels -1 and 1: G = 2, B = 2, and with lambda = 2 the weight is 1/2, the bias
    -1/2."""
    features, labels = torch.tensor([[0.0], [2.0]]), torch.tensor([-1.0, 1.0])
    head = solved(exact(penalty=2.0), features, labels, task=REGRESSION)
    assert head.weight_CD.tolist() == [[0.5]]
    assert head.bias_C.tolist() == [-0.5]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("count", [60, 4], ids=["more examples", "more features"])
@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION], ids=lambda task: task.name)
def test_ridge_agrees_with_its_slow_twin(penalty: float, count: int, task: object) -> None:
    features, labels = some_examples(count)
    wanted = functional.one_hot(labels, CLASSES)
    if task is REGRESSION:
        labels = numbers_for(features)
        wanted = labels.unsqueeze(1)
    head = solved(exact(penalty=penalty), features, labels, task=task)  # type: ignore[arg-type]
    weight, bias = slow_ridge(features, wanted, penalty)
    near(head, Linear(torch.from_numpy(weight), torch.from_numpy(bias)), 1e-7)


@pytest.mark.parametrize("penalty", [*PENALTIES, "gcv"])
@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION], ids=lambda task: task.name)
def test_any_partition_gives_the_centralised_solution(penalty: float | str, task: object) -> None:
    """To 1e-8, for every penalty above 0, with more features than examples too."""
    for count in (60, 8):
        features, labels = some_examples(count, dims=12)
        labels = labels if task is CLASSIFICATION else numbers_for(features)
        whole = solved(exact(penalty=penalty), features, labels, task=task)  # type: ignore[arg-type]
        for parts in partitions_of(count):
            for order in (parts, parts[::-1]):
                federated = solved(exact(penalty=penalty), features, labels, order, task)  # type: ignore[arg-type]
                near(federated, whole)
                assert federated.chosen == whole.chosen


def test_permuting_the_classes_permutes_the_rows() -> None:
    features, labels = some_examples()
    order = torch.tensor([2, 0, 3, 1])
    one, two = solved(exact(), features, labels), solved(exact(), features, order[labels])
    near(Linear(two.weight_CD[order], two.bias_C[order]), one, 1e-12)


def test_a_class_that_nobody_has_is_never_the_answer() -> None:
    """Its row is 0, and the outputs of the others sum to 1."""
    features, labels = some_examples()
    labels = labels.clamp_max(2)
    head = solved(exact(), features, labels)
    assert head.weight_CD[3].abs().max() < 1e-12
    far = 100 * torch.randn(500, features.shape[1], generator=torch.Generator().manual_seed(1))
    outputs = head(far)
    torch.testing.assert_close(outputs.sum(1), torch.ones(500, dtype=torch.float64))
    assert (outputs.argmax(1) != 3).all()


def test_one_example_in_all_answers_its_class() -> None:
    for penalty in (1.0, "gcv"):
        head = solved(exact(penalty=penalty), torch.tensor([[3.0, 4.0]]), torch.tensor([2]))
        assert head.weight_CD.abs().max() == 0
        assert head.bias_C.tolist() == [0, 0, 1, 0]


def test_constant_features_get_no_weight() -> None:
    """A constant is the bias's: beside a feature that says something, and alone."""
    features, labels = some_examples()
    constant = torch.full((60, 1), 0.1)
    with_it = solved(exact(penalty=1e-3), torch.cat((features, constant), 1), labels)
    assert with_it.weight_CD[:, -1].abs().max() < 1e-9
    near(
        Linear(with_it.weight_CD[:, :-1], with_it.bias_C), solved(exact(penalty=1e-3), features, labels), 1e-9
    )
    alone = solved(exact(penalty=1e-9), constant, labels)
    assert alone.weight_CD.abs().max() == 0
    torch.testing.assert_close(alone.bias_C, torch.bincount(labels, minlength=CLASSES).double() / 60)


@pytest.mark.parametrize("upload", ["float64", "float32", "float16"])
def test_huge_and_tiny_features_give_the_same_answers(upload: str) -> None:
    """The penalty is found on their scale; what float32 and float16 round is theirs too."""
    features, labels = some_examples(200)
    plain = solved(Ridge(upload=upload), features, labels)
    for size in (2.0**20, 2.0**-20):
        scaled = solved(Ridge(upload=upload), size * features, labels)
        answers = scaled(size * features).argmax(1)
        assert (answers == plain(features).argmax(1)).double().mean() > 0.98
        assert (answers == labels).double().mean() > 0.8


@pytest.mark.parametrize(("upload", "off"), [("float32", 1e-5), ("float16", 2e-2)])
def test_fewer_bits_cost_little(upload: str, off: float) -> None:
    features, labels = some_examples(200)
    rounded = solved(Ridge(upload=upload, penalty=10.0), features, labels, partitions_of(200)[0])
    true = solved(exact(penalty=10.0), features, labels)
    assert 0 < (rounded(features) - true(features)).abs().max() < off


# ----------------------------------------------------------------------------- the penalty


def slow_left_out(features: torch.Tensor, wanted: torch.Tensor, penalty: float) -> float:
    """Generalised cross-validation by the matrix that maps wanted outputs to fitted ones."""
    x, y = features.double().numpy(), wanted.double().numpy()
    count = len(x)
    centred = x - x.mean(0)
    hat = centred @ np.linalg.solve(centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T) + 1 / count
    residual = y - hat @ y
    return float((residual**2).sum() / count / (1 - np.trace(hat) / count) ** 2)


@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION], ids=lambda task: task.name)
@pytest.mark.parametrize("count", [60, 9])
def test_generalised_cross_validation_agrees_with_its_slow_twin(task: object, count: int) -> None:
    features, labels = some_examples(count)
    wanted = functional.one_hot(labels, CLASSES)
    if task is REGRESSION:
        labels = numbers_for(features)
        wanted = labels.unsqueeze(1)
    system = equations(summed(exact(), features, labels, task=task))  # type: ignore[arg-type]
    for penalty in (0.03, 1.0, 50.0):
        slow = slow_left_out(features, wanted, penalty)
        assert system.left_out(penalty) == pytest.approx(slow, rel=1e-9)


def test_generalised_cross_validation_takes_the_penalty_of_the_least_error() -> None:
    """On labels that features say nothing of the largest, on labels that they tell exactly a small one."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 30, generator=generator)
    system = equations(summed(exact(), features, numbers_for(features), task=REGRESSION))
    penalties = system.penalties(0.0)
    chosen = solved(exact(), features, numbers_for(features), task=REGRESSION).chosen
    assert chosen == min(penalties, key=system.left_out)
    assert penalties[0] < chosen < penalties[-1]
    exactly = features @ torch.randn(30, generator=generator)
    nothing = torch.randn(80, generator=generator)
    small = solved(exact(), features, exactly / exactly.std(), task=REGRESSION).chosen
    large = solved(exact(), features, nothing, task=REGRESSION).chosen
    assert small is not None
    assert large is not None
    assert small < 0.1
    assert large > 100


@pytest.mark.parametrize("upload", ["float64", "float32", "float16"])
@pytest.mark.parametrize(("count", "dims"), [(60, 300), (300, 300), (80, 1280)])
def test_with_as_many_features_as_examples_the_penalty_is_nearly_the_best(
    upload: str, count: int, dims: int
) -> None:
    """Features of rank 8, whose Gram matrix has no more eigenvalues but those that rounding makes: whether
    labels follow from them, in part or not at all, others are predicted about as well as they can be."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(8, dims, generator=generator)
    means, total = torch.randn(CLASSES, 8, generator=generator), count + 1000
    for apart in (3.0, 1.0, 0.0):
        labels = torch.randint(CLASSES, (total,), generator=generator)
        hidden = apart * means[labels] + torch.randn(total, 8, generator=generator)
        features, head = hidden @ basis, Ridge(upload=upload)
        sums = summed(head, features[:count], labels[:count])
        system, wanted = equations(sums), functional.one_hot(labels[count:], CLASSES)

        def missed(linear: Linear, given: torch.Tensor = features, wanted: torch.Tensor = wanted) -> float:
            return float((linear(given[count:]) - wanted).square().sum(1).mean())

        best = min(missed(Linear(*system.solution(one))) for one in system.penalties(sums.noise(head.upload)))
        found = head.fit(sums, None)
        assert missed(found) <= 1.05 * best
        if apart == 3.0:
            assert (found(features[count:]).argmax(1) == labels[count:]).double().mean() > 0.95


def test_as_the_penalty_goes_to_0_the_error_left_out_keeps_a_limit_where_features_are_more() -> None:
    r"""With :math:`e_j` and :math:`c_j` of the fit, N sum of c_j^2 / e_j^3 over (sum of 1 / e_j)^2: both the
    squared error and the freedom that is left vanish."""
    features, labels = some_examples(12, dims=40)
    system = equations(summed(exact(), features, labels))
    values, squares = system.values_E, system.wanted_CE.square().sum(0)
    assert len(values) == 11
    limit = 12 * float((squares / values**3).sum() / (1 / values).sum() ** 2)
    assert system.left_out(1e-7 * float(values.min())) == pytest.approx(limit, rel=1e-4)


@pytest.mark.parametrize("upload", ["float64", "float32", "float16"])
@pytest.mark.parametrize("value", [0.1, 3.3, "one each"])
def test_constant_features_leave_the_shares_of_the_classes(upload: str, value: float | str) -> None:
    """Nothing is made of rounding: neither in the answer, nor where a feature differs by 1%."""
    labels = some_examples(1000, dims=1)[1]
    row = 5 * torch.rand(300, generator=torch.Generator().manual_seed(0))
    row = row if isinstance(value, str) else torch.full((300,), value)
    parts = [list(range(start, 1000, 10)) for start in range(10)]
    head = solved(Ridge(upload=upload), row.expand(1000, 300), labels, parts)
    away = row * (1 + 0.01 * torch.randn(300, generator=torch.Generator().manual_seed(1)))
    shares = torch.bincount(labels, minlength=CLASSES).double() / 1000
    for given in (row, away):
        torch.testing.assert_close(head(given.unsqueeze(0))[0], shares, rtol=0, atol=1e-4)


def test_no_penalty_is_below_what_rounding_leaves_in_doubt() -> None:
    """With more features than examples and exact labels the smallest would be best."""
    features, _ = some_examples(20, dims=40)
    numbers = features @ torch.ones(40)
    numbers = (numbers - numbers.mean()) / numbers.std()
    for upload in ("float64", "float32", "float16"):
        sums: Sums = summed(Ridge(upload=upload), features, numbers, task=REGRESSION)
        chosen = solved(Ridge(upload=upload), features, numbers, task=REGRESSION).chosen
        assert chosen is not None
        assert chosen >= sums.noise(upload) > 0


def test_validation_takes_the_penalty_whose_head_scores_best() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = some_examples(30, dims=25)
    features = features + 2 * torch.randn(30, 25, generator=generator)
    more, answers = some_examples(300, dims=25, seed=1)
    for task, mine, theirs in (
        (CLASSIFICATION, labels, answers),
        (REGRESSION, numbers_for(features), numbers_for(more)),
    ):
        head = exact(penalty="validation")
        sums = summed(head, features, mine, task=task)
        found = head.fit(sums, Examples(more, theirs))
        system = equations(sums)
        scores = [
            task.score(Linear(*system.solution(one))(more), theirs)
            for one in system.penalties(sums.noise("float64"))
        ]
        assert task.score(found(more), theirs) == max(scores) > min(scores)
        assert head.server_labels() == {"validation"}
        with pytest.raises(KdfedError, match="expected validation examples to choose with, got none"):
            head.solve(sums, 25, 0)


def test_a_penalty_that_needs_no_labels_does_not_ask_for_any() -> None:
    assert exact().server_labels() == exact(penalty=1.0).server_labels() == frozenset()


@pytest.mark.parametrize("penalty", [0.0, -1.0, math.inf, "loo"])
def test_penalties_that_are_none_are_refused(penalty: object) -> None:
    with pytest.raises(ValueError, match="penalty"):
        Ridge(penalty=penalty)
