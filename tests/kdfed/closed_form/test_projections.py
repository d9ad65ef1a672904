from __future__ import annotations

import pytest
import torch

from kdfed.closed_form.projections import projection_matrix


def test_worked_pool() -> None:
    """Five features in two groups: three and two."""
    matrix = projection_matrix(5, 2, "pool", 0)
    assert matrix.tolist() == [[1 / 3, 1 / 3, 1 / 3, 0, 0], [0, 0, 0, 1 / 2, 1 / 2]]
    assert torch.equal(projection_matrix(5, 5, "pool", 0), torch.eye(5, dtype=torch.float64))


def test_pool_is_the_average_pooling_of_pytorch_where_groups_are_equal() -> None:
    features = torch.randn(3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pooled = torch.nn.functional.avg_pool1d(features.unsqueeze(1), 3).squeeze(1)
    torch.testing.assert_close(features @ projection_matrix(12, 4, "pool", 0).T, pooled)


def test_random_coins_are_the_same_bits_for_everybody_and_others_for_another_seed() -> None:
    """The first coins of seed 3 are written down, so that another version that draws others is seen."""
    matrix = projection_matrix(6, 4, "random", 3)
    assert torch.equal(matrix, projection_matrix(6, 4, "random", 3))
    assert not torch.equal(matrix, projection_matrix(6, 4, "random", 4))
    assert set(matrix.flatten().tolist()) == {-0.5, 0.5}
    assert (2 * matrix[0]).tolist() == [-1, -1, 1, 1, 1, 1]


@pytest.mark.parametrize("kept", [1, 64, 512])
def test_random_projections_keep_scalar_products_on_average(kept: int) -> None:
    """Over seeds the mean of P^T P is the identity, within four standard deviations, 1 / sqrt(400 d) each."""
    total = torch.zeros(8, 8, dtype=torch.float64)
    for seed in range(400):
        matrix = projection_matrix(8, kept, "random", seed)
        total += matrix.T @ matrix / 400
    assert (total - torch.eye(8)).abs().max() < 4 / (400 * kept) ** 0.5
