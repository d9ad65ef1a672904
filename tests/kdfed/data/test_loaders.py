"""Examples of what PyTorch apps have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from kdfed.data import Examples, examples_of_loader
from kdfed.errors import DataError

INPUTS = torch.arange(600.0).reshape(300, 2)
LABELS = torch.arange(300) % 3
PAIRS = TensorDataset(INPUTS, LABELS)


class Dicts:
    """What ``datasets.Dataset`` looks like to PyTorch."""

    def __init__(self, inputs: str = "img", label: str = "label") -> None:
        self.inputs, self.label = inputs, label

    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {self.inputs: INPUTS[index], self.label: int(LABELS[index])}


@pytest.mark.parametrize(
    "data",
    [
        PAIRS,
        DataLoader(PAIRS, batch_size=128),
        Dicts(),
        Dicts("pixel_values", "target"),
        DataLoader(Dicts(), batch_size=7),  # type: ignore[arg-type]
        Examples(INPUTS.double(), LABELS.to(torch.uint8)),
        iter([(INPUTS[:100], LABELS[:100]), [INPUTS[100:], LABELS[100:]]]),
    ],
)
def test_every_form_gives_the_same_examples(data: Any) -> None:
    examples = examples_of_loader(data, "transfer")
    assert torch.equal(examples.inputs, INPUTS)
    assert torch.equal(examples.labels, LABELS)
    assert (examples.inputs.dtype, examples.labels.dtype) == (torch.float32, torch.int64)


def test_a_loader_that_shuffles_does_so_in_the_same_order_each_time() -> None:
    loader = DataLoader(PAIRS, batch_size=8, shuffle=True)
    torch.manual_seed(1)
    first, after = examples_of_loader(loader, "transfer"), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(2)
    second = examples_of_loader(loader, "transfer")
    assert torch.equal(first.inputs, second.inputs)
    assert not torch.equal(first.inputs, INPUTS)


def test_a_loader_with_a_sampler_gives_its_sample_alone() -> None:
    loader = DataLoader(PAIRS, batch_size=8, sampler=SubsetRandomSampler([1, 5]))
    assert sorted(examples_of_loader(loader, "transfer").inputs[:, 0].tolist()) == [2.0, 10.0]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "expected examples in transfer, got none"),
        (DataLoader(TensorDataset(INPUTS)), r"got \(float32 \[1, 2\]\)"),
        ([{"img": INPUTS[0], "mask": INPUTS[0], "label": 1}], r"got a dict of img: float32 \[1, 2\], mask"),
        ([{"img": INPUTS[0], "class": 1}], r"class: int64 \[1\]; or give kdfed.data.Examples"),
        (
            [(INPUTS[0].to(torch.uint8), 1)],
            r"got uint8 \[1, 2\] and int64 \[1\]; give it the app's transforms",
        ),
        ([(INPUTS[0], 0.5)], r"and float64 \[1\]"),
        (Examples(INPUTS, LABELS[:5]), "a label for each input in transfer, got 300 and 5"),
    ],
)
def test_anything_else_is_refused_by_what_it_holds(data: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        examples_of_loader(data, "transfer")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (DataLoader(PAIRS, batch_size=None), "give its loader a batch_size"),
        ({"inputs": INPUTS, "labels": LABELS}, "expected a data set or a DataLoader as transfer"),
        (None, "expected a data set or a DataLoader as transfer, got None"),
        (5, "expected a data set or a DataLoader as transfer, got 5"),
        (iter([(INPUTS, LABELS), (INPUTS[:, :1], LABELS)]), r"of one shape in transfer, got \[2\] and \[1\]"),
        (Examples(INPUTS.numpy(), LABELS.numpy()), "expected tensors as the inputs and labels of transfer"),
    ],
)
def test_what_is_no_data_set_is_refused_in_words(data: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        examples_of_loader(data, "transfer")
