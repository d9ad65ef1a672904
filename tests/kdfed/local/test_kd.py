from __future__ import annotations

import pytest
import torch

from kdfed.local import KDLocal
from kdfed.losses import kd_loss
from kdfed.task import CLASSIFICATION
from kdfed.train import predict
from tests.kdfed.local.training import some_examples, some_model, train_local


def test_local_distillation_is_the_kd_loss_from_the_received_model() -> None:
    received, model, examples = some_model(), some_model(seed=1), some_examples()
    loss = KDLocal(temperature=4.0, weight=0.3).loss(lambda: received, CLASSIFICATION)
    target = torch.softmax(predict(received, examples.inputs) / 4.0, 1)
    with torch.no_grad():
        found = loss.mean(model, examples.inputs, examples.labels)
        expected = kd_loss(model(examples.inputs), target, examples.labels, 4.0, 0.3)
    torch.testing.assert_close(found, expected)


def test_the_received_model_stays_frozen_while_its_copy_trains() -> None:
    """With w = 1 and no dropout the received model is the optimum of its own distillation: nothing moves."""
    model = some_model()
    result = train_local(model, some_examples(), KDLocal(weight=1.0, epochs=3), seed=0)
    assert result.loss == pytest.approx(0.0, abs=1e-5)
    for now, received in zip(model.parameters(), some_model().parameters(), strict=True):
        torch.testing.assert_close(now, received, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_agrees_with_the_cpu() -> None:
    near, far = some_model(), some_model().cuda()
    here = train_local(near, some_examples(), KDLocal(epochs=2), seed=0)
    there = train_local(far, some_examples(), KDLocal(epochs=2), seed=0)
    assert there.loss == pytest.approx(here.loss, rel=1e-2)
    assert next(far.parameters()).is_cuda
    assert not predict(far, some_examples().inputs).is_cuda
