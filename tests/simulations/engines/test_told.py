"""What participants tell arrives at the server through Flower's processes too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdfed.errors import RunError
from kdfed.records import RunFolder
from simulations.engines import flower

NET = """
import warnings
import torch

class Net(torch.nn.Module):
    def __init__(self, input_shape, classes):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))

    def forward(self, x):
        if self.training and torch.is_grad_enabled() and len(x) > 3:  # not when it is tried
            warnings.warn("this model is old", UserWarning)
            x = foo
        return self.layers(x)
"""


@pytest.mark.sim
@pytest.mark.slow
def test_reasons_and_warnings_of_flowers_actors_are_logged_by_the_server(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all processes it is the server's whose logger ``kdfed`` writes: actors hand their texts over."""
    (tmp_path / "users_flower_net.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    paths = f"{tmp_path}:{Path(__file__).parents[3]}"
    monkeypatch.setenv("PYTHONPATH", paths)
    experiment = tiny(model={"name": "users_flower_net:Net"})
    # Of one arm: each tells it once.
    experiment = experiment.model_copy(update={"arms": {"cold": {"start": "random"}}})
    folder = RunFolder.open_for(tmp_path / "run", experiment)
    where = "NameError: name 'foo' is not defined (users_flower_net.py, line 13)"
    with pytest.raises(RunError) as raised:
        flower.run(experiment, folder, nodes=1, on_event=lambda event: None)
    assert f"participant 4: {where}" in str(raised.value)
    log = folder.log_path.read_text()
    assert log.count("Traceback (most recent call last)") == 1
    assert f"rounds 1: without participant 0: {where}\nTraceback" in log
    assert (
        log.count("a participant warns: UserWarning: this model is old (users_flower_net.py, line 12)\n") == 1
    )
    together = [line for line in log.splitlines() if "a participant warns: a cohort" in line]
    assert len(together) == 1, "the cohort of one, the last, failed alone"
    assert "a cohort of 2 failed together (NameError: name 'foo' is not defined" in together[0]
