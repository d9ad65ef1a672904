"""What is wrong in a file of one's own is told in one error, before anything starts or by its arm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.own.pages import Page, kdfed

RAISES = "raise ValueError('no idea')"


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("kd-method", "class ReverseKL(KDMethod)", "class ReverseKL", "(KD method), got the class ReverseKL"),
        ("kd-method", "def distil(self", "def distill(self", "that has distil(self, work: 'Distillation')"),
        ("kd-method", "class ReverseKL", "class Other", "has no attribute 'ReverseKL'"),
        ("ensemble", "trimmed: Annotated", "weight: Annotated", "keys of its own, got 'weight', which"),
        ("ensemble", "float, scores_KC", "float, *, scores_KC", "whose target takes (self, logits_KNC"),
        ("partition", "generator.permutation(indices[owner == one])", "indices", "got 0 twice"),
        (
            "partition",
            "generator.permutation(indices",
            "np.float32(indices",
            "got float32 for 4 participants",
        ),
        (
            "partition",
            "owner = ",
            f"{RAISES}; owner = ",
            "ValueError: no idea ({folder}/my_partition.py, line {line})",
        ),
        (
            "partition",
            "widest = ",
            f"{RAISES}; widest = ",
            "ValueError: no idea ({folder}/my_partition.py, line {line})",
        ),
        (
            "local-mode",
            "import torch\n",
            f"{RAISES}\n",
            "ValueError: no idea ({folder}/my_local.py, line {line})",
        ),
        (
            "data-source",
            "bunch = ",
            f"{RAISES}; bunch = ",
            "ValueError: no idea ({folder}/my_data.py, line {line})",
        ),
        (
            "model",
            "return nn.",
            f"{RAISES}; return nn.",
            "ValueError: no idea ({folder}/my_model.py, line {line})",
        ),
    ],
)
def test_a_mistake_in_the_file_is_told_before_anything_starts(
    pages: dict[str, Page],
    tmp_path: Path,
    name: str,
    old: str,
    new: str,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages[name].write(tmp_path)
    file = tmp_path / f"{pages[name].module}.py"
    assert old in file.read_text()
    text = file.read_text().replace(old, new, 1)
    file.write_text(text)
    line = text.partition(RAISES)[0].count("\n") + 1
    assert kdfed(tmp_path, pages[name].commands[0]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: experiment.yaml: 1 mistake\n")
    assert told.format(folder=tmp_path, line=line) in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        (
            "kd-method",
            "labels_N = work",
            f"{RAISES}; labels_N = work",
            "arm blend, seed 0: ValueError: no idea",
        ),
        (
            "ensemble",
            "teachers = len",
            f"{RAISES}; teachers = len",
            "arm trimmed, seed 0: ValueError: no idea",
        ),
        (
            "transfer-set",
            "generator = ",
            f"{RAISES}; generator = ",
            "and N labels; it raised ValueError: no idea (",
        ),
        ("transfer-set", "return without", "return id or without", "it raised TypeError: returned <built-in"),
        (
            "transfer-set",
            "torch.lerp(first, second, self.mixing)",
            "first.flatten(1)",
            "it raised ValueError: returned shapes",
        ),
        (
            "kd-method",
            "return work.follow(",
            "work.follow(",
            "expected distil to return a ConsolidationResult, as work.follow and work.train do, got None",
        ),
        (
            "ensemble",
            "return mean_NC /",
            "return mean_NC.sum(1) if True else mean_NC /",
            "expected probabilities of shape",
        ),
        ("local-mode", "return LocalLoss(losses)", "return losses", "expected loss to return a kdfed.local"),
        ("strategy", "return DecayedFedAvg(", "return id(", "build to return a Strategy of flwr"),
        (
            "strategy",
            "state = ",
            f"{RAISES}; state = ",
            "arm decayed, seed 0: ValueError: no idea (my_strategy.py",
        ),
        (
            "local-mode",
            "sharp_N = ",
            f"{RAISES}; sharp_N = ",
            "participant 3: ValueError: no idea (my_local.py",
        ),
    ],
)
def test_what_the_file_raises_later_costs_its_arm(
    pages: dict[str, Page],
    tmp_path: Path,
    name: str,
    old: str,
    new: str,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages[name].write(tmp_path)
    file = tmp_path / f"{pages[name].module}.py"
    assert old in file.read_text()
    text = file.read_text().replace(old, new, 1)
    file.write_text(text.replace("return id(self.decay, **config.flower)", "return id(self.decay)"))
    assert kdfed(tmp_path, [*pages[name].commands[0], "--set", "rounds.horizon=1"]) == 1
    assert told in capsys.readouterr().err
