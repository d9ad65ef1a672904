"""Things that are chosen by name: those that are registered, and those of the user's."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdfed.choosing import choices, gathered, keys_of, own_keys, parts
from kdfed.distill import METHODS, TunedConsolidation, VanillaConsolidation
from kdfed.ensembles import ENSEMBLES, MeanLogits
from kdfed.errors import KdfedError
from kdfed.family import Families
from kdfed.named import NamedError
from kdfed.partitions import PARTITIONS
from kdfed.settings import Settings
from kdfed.thing import Refusal, within
from kdfed.transfer_sets import TRANSFER_SETS, NoiseSet, PublicSet
from simulations.experiments import FAMILIES

Write = Callable[[str], str]

HEAD = """
from typing import Any, ClassVar
import numpy as np, torch
from kdfed.closed_form import ClosedFormHead, Linear
from kdfed.distill import KDMethod
from kdfed.ensembles import Ensemble, MeanLogits
from kdfed.local import LocalMode, PLAIN
from kdfed.partitions import PartitionBase
from kdfed.server import ServerBase
from kdfed.transfer_sets import DrawnSet, TransferSet
"""

GOOD = {
    "partition.kind": """
class Own(PartitionBase):
    offset: int = 0
    def deal(self, labels, classes, generator):
        return np.array_split(np.arange(len(labels)), self.participants)
""",
    "local.mode": """
class Own(LocalMode):
    offset: int = 0
    def loss(self, received, task):
        return PLAIN
""",
    "consolidation.method": """
class Own(KDMethod):
    offset: int = 0
    def distil(self, work):
        return work.train(lambda index: work.student(work.inputs[index]).sum())
""",
    "consolidation.transfer": """
class Own(DrawnSet):
    offset: int = 0
    def draw(self, input_shape, count, teachers, seed):
        return torch.full((count, *input_shape), float(self.offset))
""",
    "consolidation.ensemble": """
class Own(Ensemble):
    offset: int = 0
    def target(self, logits_KNC, temperature, scores_KC):
        return torch.softmax(logits_KNC[self.offset] / temperature, dim=1)
""",
    "closed-form.head": """
class Own(ClosedFormHead):
    offset: int = 0
    def fit(self, sums, validation):
        return Linear(sums.means_CD, torch.full((len(sums.means_CD),), float(self.offset)))
""",
    "server.strategy": """
class Own(ServerBase):
    offset: int = 0
    def build(self, config):
        return None
""",
}
KEYS = sorted(GOOD)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return a function that writes a module of the user's and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def to(text: str) -> str:
        names.append(f"users_family_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(HEAD + text)
        return names[-1]

    yield to
    for name in names:
        sys.modules.pop(name, None)


# ----------------------------------------------------------------------------- finding


def test_every_family_has_a_case_in_these_tests() -> None:
    assert {family.key for family in FAMILIES} == set(GOOD)


@pytest.mark.parametrize("key", KEYS)
def test_a_thing_of_the_users_is_found_and_answers_to_its_name(write: Write, key: str) -> None:
    family, name = FAMILIES[key], f"{write(GOOD[key])}:Own"
    kind = family.find(name)
    assert issubclass(kind, family.base)
    assert kind.__name__ == "Own"
    thing: Any = kind(offset=3)
    assert (getattr(thing, family.tag), thing.offset) == (name, 3)
    assert thing.model_dump(by_alias=True)[family.tag] == name
    assert family.find(name) is kind


@pytest.mark.parametrize("key", KEYS)
def test_a_registered_thing_is_found_by_its_name(key: str) -> None:
    for name, kind in FAMILIES[key].members.items():
        assert FAMILIES[key].find(name) is kind


@pytest.mark.parametrize("key", KEYS)
def test_an_unknown_name_is_refused_with_all_names_and_the_nearest(key: str) -> None:
    family = FAMILIES[key]
    first = next(iter(family.members))
    for wrong in (first + "s", "a:b:c"):
        with pytest.raises(KdfedError) as caught:
            family.find(wrong)
        expected = f"expected one of {', '.join(family.members)} or package.module:name, got {wrong!r}"
        assert str(caught.value).startswith(expected)
    with pytest.raises(KdfedError, match=f"; did you mean '{first}'"):
        family.find(first + "s")


@pytest.mark.parametrize("key", KEYS)
def test_what_does_not_derive_from_the_base_is_refused_with_both_sides(write: Write, key: str) -> None:
    family = FAMILIES[key]
    base = f"{family.base.__module__}.{family.base.__name__}"
    module = write("class Foreign:\n    pass\n\n\ndef function():\n    pass\n")
    for name, got in (("Foreign", "the class Foreign"), ("function", "<function function")):
        with pytest.raises(NamedError) as caught:
            family.find(f"{module}:{name}")
        expected = f"expected {module}:{name} to be a class derived from {base} ({family.noun}), got {got}"
        assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("key", KEYS)
def test_a_thing_of_another_family_is_refused(write: Write, key: str) -> None:
    other = KEYS[KEYS.index(key) - 1]
    with pytest.raises(NamedError, match=r"to be a class derived from .*, got the class Own"):
        FAMILIES[key].find(f"{write(GOOD[other])}:Own")


@pytest.mark.parametrize("key", KEYS)
def test_a_class_that_lacks_what_it_owes_is_refused(write: Write, key: str) -> None:
    family = FAMILIES[key]
    owed = sorted(family.base.__abstractmethods__)
    name = f"{write(f'class Lacking({family.base.__name__}):{chr(10)}    offset: int = 0')}:Lacking"
    with pytest.raises(NamedError) as caught:
        family.find(name)
    signature = inspect.signature(getattr(family.base, owed[0]))
    assert f"expected {name} to be a class derived from" in str(caught.value)
    assert str(caught.value).endswith(f"that has {owed[0]}{signature}, got none")


@pytest.mark.parametrize(
    ("key", "base", "owed"),
    [
        ("partition.kind", "PartitionBase", "deal"),
        ("local.mode", "LocalMode", "loss"),
        ("consolidation.method", "KDMethod", "distil"),
        ("consolidation.transfer", "TransferSet", "examples"),
        ("consolidation.ensemble", "Ensemble", "target"),
        ("server.strategy", "ServerBase", "build"),
    ],
)
def test_a_method_that_cannot_be_called_as_the_family_calls_it_is_refused_with_both_signatures(
    write: Write, key: str, base: str, owed: str
) -> None:
    name = f"{write(f'class Own({base}):{chr(10)}    def {owed}(self):{chr(10)}        return None')}:Own"
    with pytest.raises(NamedError) as caught:
        FAMILIES[key].find(name)
    ours = inspect.signature(getattr(FAMILIES[key].base, owed))
    assert str(caught.value).endswith(f"whose {owed} takes {ours}, got (self)")


def test_what_a_method_may_take_beyond_that_is_its_own_affair(write: Write) -> None:
    text = """
class Own(Ensemble):
    def target(self, logits_KNC, *rest, extra=None, **more):
        return logits_KNC
"""
    assert FAMILIES["consolidation.ensemble"].find(f"{write(text)}:Own")


def test_methods_that_need_not_be_overridden_are_checked_where_they_are(write: Write) -> None:
    text = """
class Own(Ensemble):
    def target(self, logits_KNC, temperature, scores_KC):
        return logits_KNC

    def scores(self, validation_KNC):
        return None
"""
    with pytest.raises(NamedError, match=r"whose scores takes \(self, validation_KNC: .*, got \(self, val"):
        FAMILIES["consolidation.ensemble"].find(f"{write(text)}:Own")


def test_a_module_that_cannot_be_imported_tells_file_and_line(write: Write) -> None:
    name = f"{write('1 / 0')}:Own"
    with pytest.raises(NamedError, match=r"ZeroDivisionError: division by zero \(.*\.py, line \d+\)"):
        FAMILIES["local.mode"].find(name)


# ----------------------------------------------------------------------------- reading and writing


def test_a_thing_reads_back_from_the_json_that_it_is_written_as(write: Write) -> None:
    name = f"{write(GOOD['local.mode'])}:Own"
    family = FAMILIES["local.mode"]
    thing = family.find(name)(epochs=3, offset=2)
    assert family.parse(thing.model_dump_json()) == thing
    plain = family.parse('{"epochs": 2}')
    assert getattr(plain, "mode") == "plain"  # noqa: B009 - of any local mode
    method = METHODS.find("vanilla")(transfer=NoiseSet(images=7), ensemble=MeanLogits(), epochs=2)
    assert METHODS.parse(method.model_dump_json()) == method


def test_what_is_chosen_inside_a_section_stands_beside_its_name() -> None:
    chosen = VanillaConsolidation(transfer="noise", images=100, ensemble="mean-logits", epochs=2)
    assert chosen.transfer == NoiseSet(images=100)
    assert chosen.ensemble == MeanLogits()
    written = chosen.model_dump(mode="json")
    assert (written["transfer"], written["images"], written["ensemble"]) == ("noise", 100, "mean-logits")
    assert VanillaConsolidation(**written) == chosen


def test_gathering_leaves_what_is_put_together_and_what_is_nobodys() -> None:
    together = {"transfer": {"transfer": "noise", "images": 3}, "ensemble": MeanLogits()}
    assert gathered(VanillaConsolidation, together) == together
    nobodys = gathered(VanillaConsolidation, {"transfer": "public", "images": 3, "epochs": 2})
    assert nobodys["transfer"] == {"transfer": "public"}
    assert (nobodys["images"], nobodys["epochs"]) == (3, 2)
    assert gathered(VanillaConsolidation, {"transfer": "nois"})["transfer"] == {"transfer": "nois"}


def test_the_keys_of_settings_are_theirs_and_of_what_is_chosen_in_them() -> None:
    assert own_keys(NoiseSet, "transfer") == {"images"}
    assert own_keys(PublicSet, "transfer") == set()
    assert "images" not in keys_of(VanillaConsolidation, {})
    assert keys_of(VanillaConsolidation, {"transfer": "proxy"}) == {
        *keys_of(VanillaConsolidation, {}),
        *("proxy", "images"),
    }
    assert set(choices(VanillaConsolidation)) == {"transfer", "ensemble"}
    assert set(choices(TunedConsolidation)["ensemble"]) == set(ENSEMBLES.members)


def test_parts_have_the_keys_of_a_file() -> None:
    chosen = VanillaConsolidation(transfer="proxy", proxy={"source": "digits"})
    found = dict(parts(chosen.transfer, "consolidation"))
    assert set(found) == {"consolidation", "consolidation.proxy", "consolidation.proxy.splits"}
    everything = [key for key, _ in parts(chosen, "consolidation")]
    assert everything.count("consolidation") == 3  # the method, its transfer set and its ensemble
    assert "consolidation.proxy" in everything


def test_a_refusal_from_within_a_thing_gets_the_key_of_its_section() -> None:
    refusal = within(Refusal(".weight", "no", (".labels", "data.task")), "consolidation")
    assert refusal == ("consolidation.weight", "no", ("consolidation.labels", "data.task"))
    assert within(Refusal("", "no"), "local").key == "local"
    assert within(Refusal("start", "no"), "local").key == "start"


# ----------------------------------------------------------------------------- families that values open


def test_families_are_opened_to_what_values_name_and_stay_themselves_without(write: Write) -> None:
    name = f"{write(GOOD['consolidation.ensemble'])}:Own"
    opened, problems = FAMILIES.open_to({"consolidation": {"ensemble": name}})
    assert problems == []
    assert name in opened["consolidation.ensemble"].members
    assert name not in FAMILIES["consolidation.ensemble"].members
    same, problems = FAMILIES.open_to({"consolidation": {"ensemble": "mean-logits"}, "local": {"mode": "kd"}})
    assert same is FAMILIES
    assert problems == []


def test_names_are_looked_for_in_arms_and_in_what_strategies_choose(write: Write) -> None:
    module = write(GOOD["local.mode"])
    values = {
        "arms": {"a": {"local": {"mode": f"{module}:Own"}}},
        "server": {"distillation": {"ensemble": "no_module:X"}},
    }
    assert [(key, family.key, name) for key, family, name in FAMILIES.named_in(values)] == [
        ("arms.a.local.mode", "local.mode", f"{module}:Own"),
        ("server.distillation.ensemble", "consolidation.ensemble", "no_module:X"),
    ]
    opened, problems = FAMILIES.open_to(values)
    assert f"{module}:Own" in opened["local.mode"].members
    ((key, message),) = problems
    assert key == "server.distillation.ensemble"
    assert "ModuleNotFoundError" in message


def test_in_the_place_of_what_is_not_found_stands_something_that_takes_any_keys() -> None:
    opened, problems = FAMILIES.open_to({"partition": {"kind": "no_module:Own"}})
    assert [key for key, _ in problems] == ["partition.kind"]
    thing = opened["partition.kind"].find("no_module:Own")(participants=3, whatever=[1])  # type: ignore[call-arg]
    assert (thing.participants, thing.model_dump()["whatever"]) == (3, [1])
    with pytest.raises(ValueError, match="participants"):
        opened["partition.kind"].find("no_module:Own")(participants=0)


@pytest.mark.parametrize(
    ("family", "field", "key"),
    [
        ("consolidation.ensemble", "epochs", "epochs"),
        ("consolidation.ensemble", "images", "images"),
        ("consolidation.transfer", "labels", "labels"),
        ("consolidation.transfer", "batch_size", "batch-size"),
    ],
)
def test_keys_that_mean_something_else_in_the_section_are_refused(
    write: Write, family: str, field: str, key: str
) -> None:
    text = GOOD[family].replace("offset: int", f"{field}: int")
    section, tag = family.split(".")
    name = f"{write(text)}:Own"
    _, problems = FAMILIES.open_to({section: {tag: name}})
    ((where, message),) = problems
    assert where == family
    noun = FAMILIES[family].noun
    assert f"expected {noun} {name} to have keys of its own, got {key!r}, which" in message
    assert message.endswith("give it another name")


def test_a_section_of_the_users_whose_key_is_that_of_something_chosen_in_it_is_refused(write: Write) -> None:
    text = GOOD["consolidation.method"].replace("offset: int", "images: int")
    _, problems = FAMILIES.open_to({"consolidation": {"method": f"{write(text)}:Own"}})
    ((where, message),) = problems
    assert where == "consolidation.method"
    assert "got 'images', which Own or what is chosen beside it has too" in message


def test_what_holds_an_opened_thing_keeps_its_own_default(write: Write) -> None:
    name = f"{write(GOOD['consolidation.ensemble'])}:Own"
    opened, _ = FAMILIES.open_to({"consolidation": {"ensemble": name}})
    feddf: Any = opened.sections["server"].members["feddf"]()
    assert feddf.distillation.ensemble.ensemble == "mean-logits"
    other = type(feddf.distillation)(ensemble=name, offset=1)
    assert (other.ensemble.ensemble, other.ensemble.offset) == (name, 1)


def test_placeholders_import_nothing_and_take_any_keys(write: Write) -> None:
    name = f"{write('raise RuntimeError')}:Own"
    families = FAMILIES.with_placeholders({"local": {"mode": name}, "consolidation": {"ensemble": name}})
    assert set(families["local.mode"].members) == {name}
    thing: Any = families["local.mode"].find(name)(epochs=2, whatever=3)
    assert (thing.mode, thing.epochs, thing.whatever) == (name, 2, 3)
    assert set(families["consolidation.ensemble"].members) == {*ENSEMBLES.members, name}
    assert name.partition(":")[0] not in sys.modules


def test_a_family_with_one_more_member_leaves_the_old_one_alone() -> None:
    more = PARTITIONS.including("again", PARTITIONS.find("uniform"))
    assert set(more.members) == {*PARTITIONS.members, "again"}
    assert "again" not in PARTITIONS.members
    every = Families((PARTITIONS, TRANSFER_SETS)).including("partition.kind", "again", more.find("uniform"))
    assert "again" in every["partition.kind"].members
    assert every["consolidation.transfer"] is TRANSFER_SETS


def test_every_key_and_tag_of_the_families_is_there_once() -> None:
    assert len({family.key for family in FAMILIES}) == len(list(FAMILIES))
    assert len({family.tag for family in FAMILIES}) == len(list(FAMILIES))
    assert set(FAMILIES.sections) == {"partition", "local", "consolidation", "server"}


def test_every_registered_thing_is_what_a_users_must_be() -> None:
    for family in FAMILIES:
        for name, kind in family.members.items():
            assert family._checked(f"{kind.__module__}:{kind.__name__}") is kind, name
            assert issubclass(kind, Settings)
