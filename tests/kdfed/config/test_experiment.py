"""Experiment files: what is read, and that every mistake is reported at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdfed.config import combinations, parse_set, read_recorded, sampled_count, split_set
from kdfed.errors import ConfigError
from kdfed.settings import ModelSettings
from simulations.experiments import FAMILIES, build_experiment, load_experiment, merge

DESIGN = """
name: quickstart
seeds: [0, 1, 2]
threads: 1
data: {source: mnist5k, splits: {test: 0.10, evaluation: 0.20, validation: 0.05, transfer: 0.10}}
partition: {kind: dirichlet, alpha: 0.1, participants: 20, min-examples: 1}
model: {name: cnn}
local: {mode: plain, epochs: 1, batch-size: 10, optimizer: sgd, lr: 0.05, momentum: 0.9}
teachers: {count: all, epochs: 10, init: common, upload: weights}
consolidation: {method: vanilla, ensemble: mean-probabilities, temperature: 3.0, epochs: 60}
server: {strategy: fedavg, sampled: all, minimum: 1, cohort-size: 8}
rounds: {horizon: 40, plateau: {rounds: 20, min-delta: 0.005}}
targets: [0.9, "90%-of-converged", "95%-of-converged"]
baseline: cold
arms:
  cold: {start: random}
  consolidated: {start: consolidated}
"""


COMBINATIONS = combinations(FAMILIES)
COUNT, VIEWS = "arms.consolidated.teachers.count", "arms.consolidated.consolidation.views"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "experiment.yaml"
    file.write_text(DESIGN)
    return file


def _mistakes(path: Path, *assignments: str, seeds: list[str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, assignments, seeds)
    return {mistake.key: mistake.message for mistake in caught.value.mistakes}


def test_the_file_of_the_design_reads(path):
    experiment = load_experiment(path)
    assert experiment.arm_order == ("cold", "consolidated")
    assert experiment.arm("consolidated").start == "consolidated"
    assert experiment.arm("cold").partition.participants == 20


def test_a_resolved_experiment_reads_back_equal(path):
    experiment = load_experiment(path, ["arms.consolidated.consolidation.epochs=3", "seeds=[4]"])
    assert build_experiment(yaml.safe_load(experiment.to_yaml())) == experiment


def test_settings_are_frozen(path):
    with pytest.raises(ValueError, match="frozen"):
        load_experiment(path).name = "other"


def test_arms_replace_nested_and_dotted_keys(path):
    experiment = load_experiment(
        path, ["arms.consolidated={consolidation.epochs: 2, consolidation: {lr: 0.2}}"]
    )
    assert experiment.arm("consolidated").consolidation.epochs == 2
    assert experiment.arm("consolidated").consolidation.lr == 0.2
    assert experiment.arm("cold").consolidation.epochs == 60


def test_another_kind_drops_the_keys_of_the_old_one(path):
    experiment = load_experiment(
        path, ["partition.kind=uniform", "server.strategy=fedadam", "server.eta=1e-2"]
    )
    assert experiment.partition.kind == "uniform"
    assert experiment.partition.participants == 20
    assert experiment.server.eta == 0.01


def test_another_model_drops_the_options_of_the_old_one(path):
    experiment = load_experiment(
        path, ["model.options.width=4", "arms.cold.model={name: mlp, options: {hidden: [8]}}"]
    )
    assert experiment.arm("cold").model.options == {"hidden": (8,)}
    assert experiment.arm("consolidated").model.options == {"width": 4}


def test_merge_changes_neither_of_its_arguments():
    base, changes = {"a": {"b": 1}}, {"a.c": 2}
    assert merge(base, changes) == {"a": {"b": 1, "c": 2}}
    assert (base, changes) == ({"a": {"b": 1}}, {"a.c": 2})


def test_all_mistakes_are_reported_at_once_with_key_value_expectation_and_near_match(path):
    mistakes = _mistakes(
        path,
        "partition.alpha=0",
        "consolidation.metod=vanilla",
        "consolidation.method=vanila",
        "teachers.count=many",
        "targets=[1.5, soon]",
        "arms.cold.local.lr=-1",
        "arms.cold.seeds=[1]",
        "threads=true",
        "server.strategy=fedavgg",
        "model.nam=x",
        "rounds.plateau.stop=1",
        "baseline=colt",
        seeds=["0", "one"],
    )
    assert "above 0" in mistakes["partition.alpha"]
    assert "got 0" in mistakes["partition.alpha"]
    assert "did you mean 'method'?" in mistakes["consolidation.metod"]
    assert "did you mean 'vanilla'?" in mistakes["consolidation.method"]
    assert (
        "expected 'all', got 'many'" in mistakes["teachers.count"]
        or "whole number" in mistakes["teachers.count"]
    )
    assert "at most 1.0, got 1.5" in mistakes["targets.0"]
    assert "got 'soon'" in mistakes["targets.1"]
    assert "got -1" in mistakes["arms.cold.local.lr"]
    assert "arms share it" in mistakes["arms.cold.seeds"]
    assert "whole number, got True" in mistakes["threads"]
    assert "did you mean 'fedavg'?" in mistakes["server.strategy"]
    assert "did you mean 'name'?" in mistakes["model.nam"]
    assert "true or false" in mistakes["rounds.plateau.stop"]
    assert "did you mean 'cold'?" in mistakes["baseline"]
    assert "got 'one'" in mistakes["seeds.1"]


@pytest.mark.parametrize(
    ("assignments", "key", "text"),
    [
        (["local.optimizer=adam"], "local.momentum", "no such option"),
        (["server.strategy=fedprox"], "local.mode", "expected 'proximal'"),
        (["data.splits.test=0.8"], "data.splits", "leave examples"),
        (["data.columns.label=y"], "data.columns", "remove it"),
        (["server.sampled=21"], "server.sampled", "at most the 20 participants"),
        (["server.minimum=5", "server.sampled=0.1"], "server.minimum", "at most the 2 participants"),
        (["teachers.count=21"], "arms.consolidated.teachers.count", "at most the 20"),
        (["consolidation.weight=0.5"], "arms.consolidated.consolidation.weight", "labels: true"),
        (["consolidation.labels=true"], "arms.consolidated.consolidation.labels", "no effect"),
        (
            ["consolidation.method=tuned", "consolidation.weights=[0.5]"],
            "arms.consolidated.consolidation.weights",
            "labels: true",
        ),
        (
            ["consolidation.method=tuned", "consolidation.labels=true"],
            "arms.consolidated.consolidation.labels",
            "no effect with weights 1",
        ),
        (
            ["consolidation.method=tuned", "consolidation.trials=3"],
            "arms.consolidated.consolidation.trials",
            "tries every pair",
        ),
        (
            ["consolidation.method=tuned", "consolidation.sampler=tpe"],
            "arms.consolidated.consolidation.trials",
            "how many pairs 'tpe' tries",
        ),
        (
            ["consolidation.method=mutual", "teachers.upload=logits"],
            "arms.consolidated.consolidation",
            "the teachers are trained too",
        ),
        (
            ["consolidation.views=4"],
            "arms.consolidated.consolidation.views",
            "no effect without augmentation",
        ),
        (["consolidation.ensemble=label-counts"], "arms.consolidated.consolidation.ensemble", "send: true"),
        (
            ["teachers.label-counts.epsilon=1"],
            "arms.consolidated.teachers.label-counts.epsilon",
            "no effect unless send",
        ),
        (
            ["teachers.upload=logits", "consolidation.init=averaged"],
            "arms.consolidated.consolidation.init",
            "needs teachers.upload 'weights'",
        ),
        (
            ["teachers.upload=logits", "consolidation.ensemble=validated"],
            "arms.consolidated.consolidation.ensemble",
            "needs teachers.upload 'weights'",
        ),
        (
            ["teachers.upload=logits", "consolidation.ensemble=stacked"],
            "arms.consolidated.consolidation.ensemble",
            "needs teachers.upload 'weights'",
        ),
        (
            ["consolidation.ensemble=stacked", "consolidation.unseen=0.95"],
            "consolidation.unseen",
            "0.9",
        ),
        (
            ["server.strategy=krum", "server.num-malicious-nodes=3", "server.sampled=5"],
            "server.num-malicious-nodes",
            "expected at least 1, got 5 - 3 - 2",
        ),
        (["arms.cold.teachers.lr=0.1"], "arms.cold.teachers", "no effect with start: random"),
        (["arms.cold.consolidation.lr=0.1"], "arms.cold.consolidation", "no effect with start: random"),
        (["arms.cold.server-fit.lr=0.1"], "arms.cold.server-fit", "no effect with start: random"),
        (
            ["arms.consolidated.server-fit={labels: true}"],
            "arms.consolidated.server-fit",
            "no effect with start: consolidated",
        ),
        (
            ["arms.own={start: server, teachers: {lr: 0.1}}"],
            "arms.own.teachers",
            "no effect with start: server",
        ),
        (
            ["arms.own={start: server, consolidation: {lr: 0.1}}"],
            "arms.own.consolidation",
            "no effect with start: server",
        ),
        (
            ["arms.own={start: server, server-fit: {optimizer: adam, momentum: 0.9}}"],
            "arms.own.server-fit.momentum",
            "no such option",
        ),
        (
            ["arms.consolidated={start: averaged, consolidation: {lr: 0.1}}"],
            "arms.consolidated.consolidation",
            "no effect with start: averaged",
        ),
        (
            ["teachers.label-counts.send=true"],
            "arms.consolidated.teachers.label-counts.send",
            "only start: consolidated with the ensemble 'label-counts' uses it",
        ),
        (
            ["teachers.label-counts.send=true", "arms.consolidated.start=averaged"],
            "arms.consolidated.teachers.label-counts.send",
            "got start: averaged",
        ),
        (
            ["server.strategy=feddf", "server.distillation.labels=true"],
            "server.distillation.labels",
            "no effect with weight 1",
        ),
        (
            ["server.strategy=feddf", "server.distillation.momentum=0.5"],
            "server.distillation.momentum",
            "no such option",
        ),
        (["arms.bad/name.start=random"], "arms.bad/name", "letters"),
        (["model.name=cnnn"], "model", "cnn"),
        (["model.options.widht=3"], "model", "width"),
        (["local.mode=mutual", "local.model.name=cnnn"], "local.model", "cnn"),
        (["local.mode=mutual", "local.momentum=0.9", "local.optimizer=adam"], "local.momentum", "no such"),
    ],
)
def test_options_that_do_not_go_together_are_refused(path, assignments, key, text):
    assert text in _mistakes(path, *assignments)[key]


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("threads=257", "at most 256"),
        ("teachers.model=[]", "a list of at least 1"),
        ("targets=[0.9, 0.90]", "distinct targets"),
        ("targets=['90%-of-converged', 90.0%-of-converged]", "distinct targets"),
        ("targets=['90%-of-gain', 90.0%-of-gain]", "distinct targets"),
        ("data.splits.evaluation=1", "below 1"),
        ("rounds.horizon=soon", "'auto', got 'soon'"),
        ("rounds.horizon=1.5", "a whole number or 'auto', got 1.5"),
        ("rounds.horizon=-1", "at least 0"),
        ("controls=[averaged, averaged]", "distinct entries"),
        ("seeds=[1, 1]", "distinct entries"),
        ("consolidation.augmentation=[flip, crop, flip]", "distinct entries"),
        ("device=cuda:01", "not valid"),
        ("rounds.horizon=1e400", "a whole number or 'auto', got inf"),
    ],
)
def test_values_out_of_range_are_refused(path, assignment, text):
    mistakes = _mistakes(path, assignment)
    assert list(mistakes) == [assignment.partition("=")[0]]
    assert text in next(iter(mistakes.values()))


def test_a_share_is_above_none_and_at_most_all_of_it(path):
    wrong = ["0%-of-converged", "0.0%-of-converged", "100.5%-of-converged", "٩٠%-of-converged"]
    assert list(_mistakes(path, f"targets={wrong}")) == [f"targets.{i}" for i in range(len(wrong))]
    right = ["0.05%-of-converged", "9.5%-of-converged", "90%-of-gain", "90%-of-converged", "100.0%-of-gain"]
    assert load_experiment(path, [f"targets={right}"]).targets == tuple(right)


@pytest.mark.parametrize(("malicious", "sampled"), [(0, 3), (2, 5), (17, "all")])
def test_krum_with_a_single_neighbour_is_taken(path, malicious, sampled):
    words = ["server.strategy=krum", f"server.num-malicious-nodes={malicious}", f"server.sampled={sampled}"]
    load_experiment(path, words)


@pytest.mark.parametrize("key", ["alpha", "beta"])
@pytest.mark.parametrize(("value", "text"), [(-0.1, "at least 0"), (1.5, "at most 1")])
def test_weights_of_mutual_training_are_shares(path, key, value, text):
    mistakes = _mistakes(path, "local.mode=mutual", f"local.{key}={value}")
    assert text in mistakes[f"local.{key}"]


def test_mutual_training_has_no_temperature(path):
    assert list(_mistakes(path, "local.mode=mutual", "local.temperature=2")) == ["local.temperature"]


def test_mode_and_strategy_may_be_left_out_and_kind_not(tmp_path):
    file = tmp_path / "short.yaml"
    file.write_text("name: x\nlocal: {lr: 0.1}\nserver: {sampled: 6}\narms: {cold: {}}\n")
    experiment = load_experiment(file)
    assert (experiment.local.mode, experiment.server.strategy) == ("plain", "fedavg")
    assert (experiment.local.lr, sampled_count(experiment)) == (0.1, 6)
    assert load_experiment(file, ["server.strategy=fedadam"]).server.sampled == 6
    assert "uniform, quantity-skew" in _mistakes(file, "partition.participants=6")["partition.kind"]


@pytest.mark.parametrize(
    ("assignments", "keys"),
    [
        (["seeds=[a]"], ["seeds.0"]),
        (["data.normalise={mean: [0.1, 0.2], std: [0, 1]}"], ["data.normalise.std.0"]),
        (["data.normalise={mean: [0.1]}"], ["data.normalise.std"]),
        (["teachers.model=[cnn]"], ["teachers.model.0"]),
        (["teachers.model=[{nam: x}, 3]"], ["teachers.model.0.nam", "teachers.model.1"]),
        (["teachers.model=[3, 4]", "teachers.count=21"], [*("teachers.model.0", "teachers.model.1"), COUNT]),
        (["arms.cold="], ["arms.cold"]),
        (["arms="], ["arms"]),
        (
            ["partition={kind: dirichlet, alpha: 0, participants: 50}", "server.sampled=30"],
            ["partition.alpha"],
        ),
        (["partition={kind: null, participants: 50}", "server.sampled=30"], ["partition.kind"]),
        (["partition={kind: dirichlt, participants: 50}", "server.sampled=30"], ["partition.kind"]),
        (["partition={kind: dirichlt, participants: 0}"], ["partition.kind", "partition.participants"]),
        (["server.strategy=fedprox", "local={mode: proximal, mu: -1}"], ["local.mu"]),
        (["server.strategy=fedprox", "local={mode: proximl}"], ["local.mode"]),
        (["server={strategy: fedavgg, cohort-size: 0}"], ["server.strategy", "server.cohort-size"]),
        (["consolidation.labels=1", "consolidation.weight=0.5"], ["consolidation.labels"]),
        (
            ["teachers.label-counts.send=1", "consolidation.ensemble=label-counts"],
            ["teachers.label-counts.send"],
        ),
        (["partition.participants=x", "server.sampled=30"], ["partition.participants"]),
        (["consolidation.temperature=0", "consolidation.views=2"], ["consolidation.temperature", VIEWS]),
        (["arms.cold.start=randm", "arms.cold.model.name=x"], ["arms.cold.start"]),
    ],
)
def test_every_mistake_is_reported_and_none_that_another_one_makes(path, assignments, keys):
    assert list(_mistakes(path, *assignments)) == keys


def test_a_mistake_in_a_section_that_no_arm_uses_is_still_a_wrong_value(path):
    assert "arms.cold.teachers.lr" in _mistakes(path, "arms.cold.teachers.lr=0")


@pytest.mark.parametrize("choice", sorted(COMBINATIONS))
def test_every_combination_is_taken_or_refused_as_the_table_says(path, choice):
    method, transfer, upload, labels, augmentation = choice
    key, weight = ("weight", "0.5" if labels else "1")
    if method == "tuned":
        key, weight = "weights", f"[{weight}]"
    assignments = [
        f"consolidation.method={method}",
        f"consolidation.transfer={transfer}",
        *(["consolidation.proxy.source=digits"] if transfer == "proxy" else []),
        f"teachers.upload={upload}",
        f"consolidation.labels={str(labels).lower()}",
        *([] if method == "mutual" else [f"consolidation.{key}={weight}"]),
        f"consolidation.augmentation={['flip'] if augmentation else []}",
    ]
    refused = COMBINATIONS[choice]
    if refused is None:
        load_experiment(path, assignments)
    else:
        assert refused in _mistakes(path, *assignments)["arms.consolidated.consolidation"]


@pytest.mark.parametrize(
    ("assignments", "key", "text"),
    [
        (["transfer=own"], "transfer", "no participant's data"),
        (["transfer=union"], "transfer", "expected public or noise or proxy or generated, got 'union'"),
        (["transfer=nois"], "transfer", "did you mean 'noise'?"),
        (["images=100"], "images", "has no effect with transfer 'public'"),
        (["transfer=proxy"], "proxy", "is required. Expected: The other data set"),
        (["transfer=proxy", "proxy.source=mnist5k"], "proxy.source", "participants hold its images"),
        (["transfer=noise", "proxy.source=digits"], "proxy", "has no effect with transfer 'noise'"),
        (["generator.steps=9"], "generator", "set transfer: generated or remove it"),
        (["transfer=proxy", "proxy={source: digits, shape: [1, 8, 8]}"], "proxy.shape", "has no effect"),
        (["transfer=proxy", "proxy={source: digits, columns: {label: y}}"], "proxy.columns", "goes with"),
        (
            [
                "transfer=generated",
                "generator={one-hot-weight: 0, entropy-weight: 0, activation-weight: 0}",
            ],
            "generator",
            "expected one weight above 0",
        ),
    ],
)
def test_a_transfer_set_that_cannot_be_is_refused(path, assignments, key, text):
    mistakes = _mistakes(path, *(f"consolidation.{assignment}" for assignment in assignments))
    assert [name.removeprefix("arms.consolidated.") for name in mistakes] == [f"consolidation.{key}"]
    assert text in next(iter(mistakes.values()))


def test_feddf_distils_on_the_public_transfer_set_alone(path):
    mistakes = _mistakes(path, "server.strategy=feddf", "server.distillation.transfer=noise")
    assert "unknown key" in mistakes["server.distillation.transfer"]


def test_the_path_of_a_proxy_becomes_absolute(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ["consolidation.transfer=proxy", "consolidation.proxy.source=parquet:here"]
    shared = load_experiment(path, changes)
    own = load_experiment(path, [f"arms.consolidated.{change}" for change in changes])
    arm = {"start": "consolidated", "consolidation.transfer": "proxy"}
    arm["consolidation.proxy.source"] = "parquet:here"
    path.write_text(yaml.safe_dump({"name": "x", "arms": {"consolidated": arm}}))
    dotted = load_experiment(path)
    for experiment in (shared, own, dotted):
        source = experiment.arm("consolidated").consolidation.transfer.proxy.source
        assert source == f"parquet:{tmp_path / 'here'}"


def test_a_repeated_key_is_a_mistake(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("name: a\nname: b\n")
    with pytest.raises(ConfigError, match="'name' stands twice"):
        load_experiment(file)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(("[1]", "got [1]"), ("{a: 1}", "got {'a': 1}"), ("3", "got '3', which YAML reads as 3")),
        *(("null", "YAML reads as None"), ("no", "YAML reads as False; write it in quotes")),
    ],
)
def test_a_key_that_is_no_word_is_one_clear_mistake(path, key, text):
    path.write_text(f"name: x\narms:\n  ? {key}\n  : {{}}\n")
    with pytest.raises(ConfigError, match=r"1 mistake\n  expected YAML: expected a word as a key") as in_file:
        load_experiment(path)
    path.write_text(DESIGN)
    with pytest.raises(ConfigError, match=r"1 mistake\n  arms: .*expected a word as a key") as in_set:
        load_experiment(path, [f"arms={{? {key} : {{}}}}"])
    assert text in str(in_file.value)
    assert text in str(in_set.value)


def test_a_dotted_arm_name_is_refused(tmp_path):
    file = tmp_path / "dotted.yaml"
    file.write_text("name: x\narms: {a.b: {}}\n")
    assert "letters, digits, hyphen and underscore" in _mistakes(file)["arms.a.b"]


def test_words_of_seeds_are_ascii_digits(path):
    mistakes = _mistakes(path, seeds=["٣", "²", "1" * 21, "1" * 5000, "-1", str(2**32)])
    assert list(mistakes) == [f"seeds.{i}" for i in range(6)]
    assert "whole number" in mistakes["seeds.0"]
    assert "at least 0, got -1" in mistakes["seeds.4"]


@pytest.mark.parametrize("text", ["[1, 2]", "name: [", "", "x: " + "9" * 5000, "[" * 3000])
def test_a_file_that_is_no_mapping_is_one_clear_mistake(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"1 mistake\n  expected"):
        load_experiment(file)


def test_a_missing_file_is_one_clear_mistake(tmp_path):
    with pytest.raises(ConfigError, match="expected a readable YAML file: No such file"):
        load_experiment(tmp_path / "absent.yaml")


def test_set_values_are_yaml_and_mistakes_in_them_are_collected():
    assert parse_set(["a.b=1e-3", "a.c=[x, y]"]) == {"a": {"b": 0.001, "c": ["x", "y"]}}
    with pytest.raises(ConfigError, match="--set: 2 mistakes"):
        parse_set(["novalue", "a=["])


def test_the_run_config_key_set_is_split_at_spaces_outside_quotes():
    assert split_set('a=1  b="x y" c={"k":2}') == ["a=1", 'b="x y"', 'c={"k":2}']


@pytest.mark.parametrize("text", ["a='b=1", "name=it's", 'a="'])
def test_a_quote_of_the_run_config_key_set_that_is_not_closed_is_refused(text):
    with pytest.raises(ConfigError, match="expected every quote to be closed"):
        split_set(text)


def test_relative_paths_become_absolute(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(path, ["data.source=parquet:here", "arms.cold.start=file:m.safetensors"])
    assert experiment.data.source == f"parquet:{tmp_path / 'here'}"
    assert experiment.arm("cold").start == f"file:{tmp_path / 'm.safetensors'}"


@pytest.mark.parametrize(("sampled", "count"), [("all", 20), (7, 7), (0.25, 5), (0.01, 1)])
def test_sampled_is_all_or_a_number_or_a_share(path, sampled, count):
    assert sampled_count(load_experiment(path, [f"server.sampled={sampled}"])) == count


# ----------------------------------------------------------------------------- how rounds are counted


def test_a_share_of_what_is_converged_to_and_the_same_share_of_the_gain_are_two_targets(path):
    experiment = load_experiment(path, ["targets=['90%-of-converged', '90%-of-gain', 0.9]"])
    assert experiment.targets == ("90%-of-converged", "90%-of-gain", 0.9)


@pytest.mark.parametrize(
    ("targets", "counted"),
    [
        ("[0.9]", (0.9, "99%-of-converged")),
        ("['99%-of-converged', 0.9]", ("99%-of-converged", 0.9)),
        ("['95%-of-gain']", ("95%-of-gain", "99%-of-converged")),
    ],
)
def test_convergence_is_counted_whether_it_is_asked_for_or_not(path, targets, counted):
    assert load_experiment(path, [f"targets={targets}"]).counted_targets == counted


@pytest.mark.parametrize(
    ("assignment", "key", "text"),
    [
        ("rounds.max=15", "rounds.max", "is now rounds.horizon: every arm runs so many rounds"),
        (
            "rounds.rule=first",
            "rounds.rule",
            "a hit is the first round that reaches the target and whose mean",
        ),
        ("rounds.evaluate-on=validation", "rounds.evaluate-on", "read on the split data.splits.evaluation"),
        ("targets=['90%-of-best']", "targets.0", "such as 95%-of-converged"),
    ],
)
def test_a_key_of_the_first_version_is_told_its_successor(path, assignment, key, text):
    mistakes = _mistakes(path, assignment)
    assert list(mistakes) == [key]
    assert text in mistakes[key]


@pytest.mark.parametrize("key", ["rounds.stop-at-target", "rounds.plateau.stop"])
def test_arms_that_are_compared_have_no_stop(path, key):
    mistakes = _mistakes(path, f"{key}=true", "targets=[0.9]")
    assert mistakes == {
        key: "expected false, because arms that are compared run equally long; or keep a single arm"
    }


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    file = tmp_path / "alone.yaml"
    file.write_text("name: x\ntargets: [0.9]\narms: {only: {}}\n")
    return file


def test_a_single_arm_may_stop(alone):
    rounds = load_experiment(alone, ["rounds.stop-at-target=true", "rounds.plateau.stop=true"]).rounds
    assert rounds.stop_at_target
    assert rounds.plateau.stop


def test_a_control_is_an_arm_to_be_compared_too(alone):
    file_with = alone.with_name("taught.yaml")
    file_with.write_text(
        "name: x\ntargets: [0.9]\narms: {only: {start: consolidated}}\ncontrols: [averaged]\n"
    )
    assert list(_mistakes(file_with, "rounds.plateau.stop=true")) == ["rounds.plateau.stop"]


def test_nobody_can_stop_at_a_share_of_what_is_not_known_yet(alone):
    mistakes = _mistakes(alone, "rounds.stop-at-target=true", "targets=['95%-of-converged']")
    assert list(mistakes) == ["rounds.stop-at-target"]
    assert "expected targets that are accuracies" in mistakes["rounds.stop-at-target"]


def test_an_experiment_needs_a_split_to_count_on(path):
    mistakes = _mistakes(path, "data.splits.evaluation=0")
    assert mistakes == {
        "data.splits.evaluation": "expected a share above 0, on which rounds are counted, got 0"
    }


def test_the_horizon_is_a_number_or_found(path):
    assert load_experiment(path).horizon == 40
    experiment = load_experiment(path, ["rounds.horizon=auto"])
    with pytest.raises(ValueError, match="expected a horizon that was found, got auto"):
        _ = experiment.horizon
    found = experiment.with_horizon(33, "1.5 times the plateau, 22")
    assert (found.horizon, found.rounds.why) == (33, "1.5 times the plateau, 22")
    assert found.folder == experiment.folder
    assert found.arm("cold").rounds.horizon == 33


# ----------------------------------------------------------------------------- things of the user's


THINGS = """
import numpy as np
import torch
from kdfed.distill import KDMethod
from kdfed.ensembles import Ensemble
from kdfed.thing import Refusal
from kdfed.local import PLAIN, LocalMode
from kdfed.partitions import PartitionBase
from kdfed.server import ServerBase
from kdfed.settings import Settings
from kdfed.transfer_sets import DrawnSet


class Sharp(Ensemble):
    sharpness: float = 2.0

    def target(self, logits_KNC, temperature, scores_KC):
        return torch.softmax(self.sharpness * logits_KNC.mean(0), dim=1)

    def refusals(self, arm):
        if self.sharpness == 7:
            raise RuntimeError("seven")
        if self.sharpness == 8:
            yield "eight is too sharp"
        if self.sharpness > arm.consolidation.temperature:
            key = "consolidation.temperature"
            yield Refusal(".sharpness", f"expected at most {arm.consolidation.temperature}", (key,))


class Shape(Settings):
    depth: int = 1


class Bumps(DrawnSet):
    bumps: int
    "How many bumps."
    shape: Shape = Shape()

    def draw(self, input_shape, count, teachers, seed):
        return torch.full((count, *input_shape), float(self.bumps))


class Method(KDMethod):
    strength: float = 1.0

    def distil(self, work):
        raise NotImplementedError


class Mode(LocalMode):
    pull: float

    def loss(self, received, task):
        return PLAIN


class Halves(PartitionBase):
    skew: float = 1.0

    def deal(self, labels, classes, generator):
        return np.array_split(np.arange(len(labels)), self.participants)


class Server(ServerBase):
    eta: float = 1.0

    def build(self, config):
        raise NotImplementedError
"""


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Write a module of the user's, and return its name and a colon."""
    (tmp_path / "users_things.py").write_text(THINGS)
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_things:"
    sys.modules.pop("users_things", None)


def test_a_thing_of_the_users_is_chosen_by_its_name_and_its_keys_stand_beside_it(path, things):
    ensemble = [f"consolidation.ensemble={things}Sharp", "consolidation.sharpness=1.5"]
    transfer = [f"consolidation.transfer={things}Bumps", "consolidation={bumps: 2, shape: {depth: 4}}"]
    experiment = load_experiment(path, [*ensemble, *transfer, "consolidation.images=9"])
    chosen = experiment.arm("consolidated").consolidation
    assert (chosen.ensemble.ensemble, chosen.ensemble.sharpness) == (f"{things}Sharp", 1.5)
    assert (chosen.transfer.bumps, chosen.transfer.images, chosen.transfer.shape.depth) == (2, 9, 4)
    section = yaml.safe_load(experiment.to_yaml())["consolidation"]
    assert (section["ensemble"], section["sharpness"]) == (f"{things}Sharp", 1.5)
    assert (section["bumps"], section["images"], section["shape"]) == (2, 9, {"depth": 4})
    assert build_experiment(yaml.safe_load(experiment.to_yaml())) == experiment


@pytest.mark.parametrize(
    ("section", "name", "keys"),
    [
        ("consolidation", "Method", {"strength": 2.0, "transfer": "noise", "images": 3}),
        ("local", "Mode", {"pull": 0.5, "lr": 0.3}),
        ("partition", "Halves", {"skew": 3.0, "participants": 7}),
        ("server", "Server", {"eta": 0.1, "sampled": 6}),
    ],
)
def test_a_whole_section_can_be_a_thing_of_the_users(path, things, section, name, keys):
    tag = {"consolidation": "method", "local": "mode", "partition": "kind", "server": "strategy"}[section]
    words = [f"{section}.{key}={value}" for key, value in keys.items()]
    experiment = load_experiment(path, [f"{section}.{tag}={things}{name}", *words])
    written = yaml.safe_load(experiment.to_yaml())[section]
    assert {key: written[key] for key in (tag, *keys)} == {tag: f"{things}{name}", **keys}
    assert type(getattr(experiment.arm("consolidated"), section)).__name__ == name


def test_fed_df_can_have_an_ensemble_of_the_users(path, things):
    words = ["strategy=feddf", f"distillation.ensemble={things}Sharp", "distillation.sharpness=1.5"]
    experiment = load_experiment(path, [f"server.{word}" for word in words])
    assert experiment.server.distillation.ensemble.sharpness == 1.5


def test_an_arm_can_have_a_thing_of_the_users_too(path, things):
    words = [f"consolidation.ensemble: {things}Sharp", "consolidation: {sharpness: 1.5}"]
    experiment = load_experiment(path, [f"arms.consolidated={{{', '.join(words)}, start: consolidated}}"])
    assert experiment.arm("consolidated").consolidation.ensemble.sharpness == 1.5
    assert experiment.consolidation.ensemble.ensemble == "mean-probabilities"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("assignments", "key", "text"),
    [
        (["ensemble={things}Sharp", "sharpness=x"], "sharpness", "expected a number, got 'x'"),
        (["ensemble={things}Sharp", "sharpnes=1"], "sharpnes", "unknown key; did you mean 'sharpness'?"),
        (["ensemble={things}Sharp", "sharpness=5"], "sharpness", "expected at most 3.0"),
        (
            ["ensemble={things}Sharp", "sharpness=7"],
            "",
            "expected users_things:Sharp to say what it refuses; it raised RuntimeError: seven",
        ),
        (
            ["ensemble={things}Sharp", "sharpness=8"],
            "",
            "expected users_things:Sharp to say what it refuses; it",
        ),
        (["transfer={things}Bumps"], "bumps", "is required. Expected: How many bumps."),
        (["transfer={things}Bumps", "bumps=2", "shape.dept=3"], "shape.dept", "did you mean 'depth'?"),
        (["transfer={things}Bumps", "bumps=2", "shape.depth=a"], "shape.depth", "a whole number, got 'a'"),
        (["transfer={things}Bumps", "bumps=2", "images=0"], "images", "at least 1, got 0"),
        (["method={things}Method", "strength=a"], "strength", "expected a number, got 'a'"),
        (["transfer={things}Sharp"], "transfer", "to be a class derived from kdfed.transfer_sets"),
        (["ensemble={things}Blunt"], "ensemble", "module 'users_things' has no attribute 'Blunt'"),
    ],
)
def test_a_mistake_with_a_thing_of_the_users_has_the_key_of_the_file(path, things, assignments, key, text):
    words = [f"consolidation.{word.format(things=things)}" for word in assignments]
    if assignments[0].startswith("method"):  # what the file says of vanilla goes with it
        words.append("consolidation.init=common")
    mistakes = _mistakes(path, *words)
    (found,) = mistakes
    assert found.removeprefix("arms.consolidated.") == f"consolidation.{key}".rstrip(".")
    assert text in mistakes[found]


@pytest.mark.parametrize("text", ["imagse=3", "image=3"])
def test_the_nearest_key_may_be_that_of_what_is_chosen(path, text):
    mistakes = _mistakes(path, "consolidation.transfer=noise", f"consolidation.{text}")
    assert list(mistakes.values()) == ["unknown key; did you mean 'images'?"]


def test_a_required_key_without_a_sentence_of_its_own_gets_none_of_another(path, things):
    assert _mistakes(path, f"local.mode={things}Mode")["local.pull"] == "is required"


def test_all_mistakes_with_things_of_the_users_are_reported_at_once(path, things):
    mistakes = _mistakes(
        path,
        "partition.kind=no_module:Own",
        "partition.participants=0",
        f"local.mode={things}Sharp",
        "consolidation.ensemble=also:missing",
        "consolidation.transfer=nois",
        "consolidation.epochs=0",
        f"server.strategy={things}Server",
        "server.sampled=0",
        "arms.cold.local.mode=gone:Mode",
        "arms.consolidated.consolidation.lr=-1",
    )
    assert set(mistakes) == {
        *("partition.kind", "partition.participants", "local.mode", "consolidation.ensemble"),
        *("consolidation.transfer", "consolidation.epochs", "server.sampled", "arms.cold.local.mode"),
        "arms.consolidated.consolidation.lr",
    }
    assert "No module named 'no_module'" in mistakes["partition.kind"]
    assert "to be a class derived from kdfed.local.mode.LocalMode" in mistakes["local.mode"]
    assert "did you mean 'noise'?" in mistakes["consolidation.transfer"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "change", "gone", "kept"),
    [
        ("ensemble: {}Sharp, sharpness: 1.5", "ensemble=mean-logits", "sharpness", "epochs"),
        ("transfer: {}Bumps, bumps: 2, images: 7", "transfer=public", "bumps", "epochs"),
        ("transfer: {}Bumps, bumps: 2, images: 7", "transfer=noise", "bumps", "images"),
        ("transfer: noise, images: 7", "transfer=public", "images", "epochs"),
        ("transfer: proxy, proxy: {{source: digits}}, images: 7", "transfer=noise", "proxy", "images"),
        ("method: {}Method, strength: 2, transfer: noise, images: 7", "method=vanilla", "strength", "images"),
        ("method: vanilla, ensemble: {}Sharp, sharpness: 1", "method=mutual", "sharpness", "epochs"),
        ("method: vanilla, weight: 1, transfer: noise, images: 7", "method={}Method", "weight", "images"),
    ],
)
@pytest.mark.parametrize("place", ["", "arms.consolidated."])
def test_the_keys_of_what_is_no_longer_chosen_are_dropped(path, things, written, change, gone, kept, place):
    arms = "arms: {cold: {}, consolidated: {start: consolidated}}"
    path.write_text(f"name: x\nconsolidation: {{epochs: 5, {written.format(things)}}}\n{arms}\n")
    before = load_experiment(path).arm("consolidated").consolidation.model_dump()
    assert gone in before
    experiment = load_experiment(path, [f"{place}consolidation.{change.format(things)}"])
    after = experiment.arm("consolidated").consolidation.model_dump()
    assert gone not in after
    assert after[kept] == before[kept]


def test_another_kind_of_the_users_keeps_what_every_kind_has(path, things):
    experiment = load_experiment(path, [f"partition.kind={things}Halves", "partition.skew=2"])
    assert (experiment.partition.participants, experiment.partition.skew) == (20, 2.0)
    assert "alpha" not in experiment.partition.model_dump()


def test_a_module_beside_the_file_is_found(path, monkeypatch):
    monkeypatch.setattr("kdfed.named._FOLDERS", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    (path.parent / "users_beside.py").write_text(THINGS)
    experiment = load_experiment(path, ["local.mode=users_beside:Mode", "local.pull=1"])
    assert experiment.folder == path.parent
    assert Path(sys.modules.pop("users_beside").__file__).parent == path.parent


# ----------------------------------------------------------------------------- records


@pytest.mark.slow
def test_a_recorded_experiment_is_read_without_importing_anything(path, things):
    words = [
        *(f"consolidation.ensemble={things}Sharp", "consolidation.sharpness=1.5"),
        *(f"consolidation.transfer={things}Bumps", "consolidation.bumps=2"),
        *(f"partition.kind={things}Halves", f"server.strategy={things}Server", "arms.cold.server.eta=0.5"),
        *(f"arms.cold.local.mode={things}Mode", "arms.cold.local.pull=2"),
    ]
    experiment = load_experiment(path, words)
    sys.modules.pop("users_things")
    (path.parent / "users_things.py").write_text("raise RuntimeError('imported')")
    record = path.parent / "recorded.yaml"
    record.write_text(experiment.to_yaml())
    recorded = read_recorded(record)
    assert "users_things" not in sys.modules
    assert recorded == experiment
    assert yaml.safe_load(recorded.to_yaml()) == yaml.safe_load(experiment.to_yaml())
    for name in experiment.arms:
        one, two = (each.arm(name).model_dump(mode="json") for each in (recorded, experiment))
        assert one == two
    with pytest.raises(ConfigError, match="RuntimeError: imported"):
        load_experiment(record)


def test_a_record_of_registered_things_reads_back(path):
    words = ["consolidation.transfer=noise", "consolidation.images=9", "server.strategy=feddf"]
    experiment = load_experiment(path, words)
    record = path.parent / "recorded.yaml"
    record.write_text(experiment.to_yaml())
    assert read_recorded(record) == experiment


def test_a_record_from_before_batch_norm_was_a_key_is_read_as_what_it_was(path):
    model = ["model={backbone: efficientnet-lite0, trainable: last:1}", "data.source=mnist5k"]
    experiment = load_experiment(path, model)
    values = yaml.safe_load(experiment.to_yaml())
    assert values["model"].pop("batch-norm") is None
    record = path.parent / "recorded.yaml"
    record.write_text(yaml.safe_dump(values))
    recorded = read_recorded(record)
    assert recorded.model.batch_norm == "train"
    assert recorded != experiment
    assert recorded == load_experiment(path, [*model, "model.batch-norm=train"])


@pytest.mark.parametrize("text", ["name: x", "name: [", "name: x\narms: {cold: {}}\nthreads: many"])
def test_a_record_that_is_none_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_recorded(path)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"name": "cnn", "options": {"width": 4}}, {"backbone": "a:b"}, {"backbone": "a:b"}),
        ({"backbone": "a:b", "size": 8}, {"name": "cnn"}, {"name": "cnn"}),
        ({"backbone": "a:b", "name": "linear", "size": 8}, {"name": "cnn"}, {"name": "cnn"}),
        (
            {"backbone": "a:b", "weights": "file:x", "size": 8},
            {"backbone": "a:c", "size": 9},
            {"backbone": "a:c", "size": 9},
        ),
        ({"backbone": "a:b", "size": 8}, {"size": 9}, {"backbone": "a:b", "size": 9}),
        (
            {"backbone": "a:b", "size": 8},
            {"name": "linear"},
            {"backbone": "a:b", "size": 8, "name": "linear"},
        ),
        ({"backbone": "a:b", "size": 8}, {"backbone": "a:b"}, {"backbone": "a:b", "size": 8}),
        ({"options": {"width": 4}}, {"name": "cnn"}, {"options": {"width": 4}, "name": "cnn"}),
    ],
    ids=str,
)
def test_keys_of_a_model_go_with_its_name_or_backbone(
    before: dict[str, Any], after: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert merge({"model": before}, {"model": after}) == {"model": expected}


def test_an_arm_can_have_a_backbone_where_others_have_none(tmp_path: Path) -> None:
    arms = {"cold": {}, "head": {"model.backbone": "torchvision:resnet18"}}
    values = {"name": "x", "model": {"name": "cnn", "options": {"width": 4}}, "arms": arms}
    experiment = build_experiment(values)
    assert experiment.arm("head").model == ModelSettings(backbone="torchvision:resnet18")
    assert experiment.arm("cold").model == ModelSettings(name="cnn", options={"width": 4})
    assert "backbone" not in experiment.to_yaml().partition("arms:")[0], (
        "nothing is written that says nothing"
    )


def test_files_of_a_backbones_weights_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"backbone": "torchvision:resnet18", "weights": "file:w.pth"}
    values: dict[str, Any] = {
        "name": "x",
        "model": model,
        "teachers": {"model": [model, {"name": "mlp"}]},
        "arms": {"a": {"start": "consolidated"}, "b": {"model.weights": "file:other.pth"}},
    }
    experiment = build_experiment(values)
    teachers = experiment.arm("a").teachers.model
    assert isinstance(teachers, tuple)
    found = experiment.arm("a").model.weights, teachers[0].weights, experiment.arm("b").model.weights
    assert found == tuple(f"file:{tmp_path / name}" for name in ("w.pth", "w.pth", "other.pth"))
