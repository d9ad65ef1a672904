"""The app of docs/pre-consolidation.md runs as it stands there; its student is as good as its ensemble."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict

from kdfed.data import Examples
from simulations.engines.inprocess import InProcessGrid
from strategies.pre_consolidation import PreConsolidation

PAGE = Path(__file__).parents[2] / "docs" / "pre-consolidation.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
NODES = 10


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs the page's app for a seed, and returns what ``start`` returned."""
    torch.set_num_threads(1)
    modules = {"my_app": types.ModuleType("my_app")}
    monkeypatch.setitem(sys.modules, "my_app", modules["my_app"])
    for code in BLOCKS[:3]:
        name = re.match(r'"""my_app/(\w+)\.py"""', code)
        assert name is not None
        module = types.ModuleType(f"my_app.{name[1]}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, f"{name[1]}.py", "exec"), vars(module))
        modules[name[1]] = module
    results: list[Any] = []
    real = PreConsolidation.start

    def start(self: PreConsolidation, *given: Any, **more: Any) -> Any:
        results.append(real(self, *given, **more))
        return results[-1]

    monkeypatch.setattr(PreConsolidation, "start", start)

    def run(seed: int) -> Any:
        torch.manual_seed(seed)
        here = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"seed": seed})
        modules["server_app"].app(InProcessGrid(modules["client_app"].app, NODES), here)
        return results[-1]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_student_comes_close_to_its_ensemble(page: Callable[..., Any], seed: int) -> None:
    result = page(seed)
    found = result.consolidation
    assert found.ensemble_accuracy > 0.8
    assert found.accuracy >= found.ensemble_accuracy - 0.03
    assert [record.answered for record in result.records] == [NODES] * 4


def test_every_setting_can_be_given_as_the_page_shows() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[3], names)
    examples = Examples(torch.randn(30, 64), torch.arange(30) % 10)
    built = names["wrapped"](examples, examples)
    assert built.strategy.fraction_train == 1.0
    assert built.config.build(built.config.arm.model, "init")(examples.inputs).shape == (30, 10)
