from __future__ import annotations

from pathlib import Path

from flwr.app import RecordDict

from kdfed.backbones import BackboneSettings, split
from kdfed.messages import Asked
from kdfed.settings import ModelSettings
from strategies.frozen_parts import FrozenParts
from tests.small_backbones import TINY, saved


def test_of_the_same_backbone_cut_elsewhere_only_what_is_more_is_sent(tmp_path: Path) -> None:
    given, parts = saved(tmp_path), FrozenParts()

    def due(trainable: str, participant: int = 0) -> int:
        model = ModelSettings(backbone=TINY, weights=given, trainable=trainable)
        return parts.due(participant, Asked(seed=0, model=model).to_record())

    head, last = (
        split(BackboneSettings(backbone=TINY, weights=given, trainable=t)) for t in ("head", "last:1")
    )
    assert due("last:1") == last.frozen_bytes
    assert due("head") == head.frozen_bytes - last.frozen_bytes
    assert due("last:1") == 0
    assert due("head", participant=1) == head.frozen_bytes
    assert parts.due(0, Asked(seed=0, model=ModelSettings()).to_record()) == 0


def test_what_is_installed_with_the_software_and_what_names_no_backbone_is_sent_nobody() -> None:
    parts = FrozenParts()
    for model in (ModelSettings(backbone=TINY), ModelSettings()):
        assert parts.due(0, Asked(seed=0, model=model).to_record()) == 0
    assert parts.due(0, RecordDict()) == 0
