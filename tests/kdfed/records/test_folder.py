from __future__ import annotations

import errno
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdfed.errors import RecordError, RunFolderError
from kdfed.outside import models_of
from kdfed.records import (
    Outcome,
    RoundRecord,
    RunFolder,
    check_output,
    models_sha256,
    summarise,
    versions,
    weights_sha256,
    write_atomically,
)
from simulations.experiments import build_experiment, merge

VALUES = {
    "name": "small",
    "seeds": [0, 1],
    "partition": {"kind": "dirichlet", "alpha": 0.1},
    "arms": {"cold": {}, "warm": {"start": "averaged"}},
}
EXPERIMENT = build_experiment(VALUES)
OTHER = build_experiment(merge(VALUES, {"partition.alpha": 0.5, "name": "other", "arms.hot": {}}))
RECORD = RoundRecord("cold", 0, 0, 0, "start", 0.5, 0.5, 1.0, 0, 0, 0, 0, 0, (), 0.0)
SUMMARY = summarise(EXPERIMENT, "größer", [RECORD], [Outcome("cold", 0, "failed", "")])
OURS = ("rounds.jsonl", "summary.json", "curves.png", "report.html", "models/cold-0.safetensors")


def opened(path, experiment=EXPERIMENT, **more) -> RunFolder:
    return RunFolder.open_for(path, experiment, **more).begin()


def finish(folder, arm, seed, sha=None, **more):
    """Record a run of two evaluations that finished."""
    for number in (0, 1):
        folder.append(replace(RECORD, arm=arm, seed=seed, round=number))
    state = {"w": torch.full((1,), float(seed))}
    outcome = Outcome(arm, seed, "horizon", sha or weights_sha256(state), None, 2, versions())
    folder.finish(replace(outcome, **more), state)


def filled(path, arms=("cold", "warm"), seeds=(0, 1)) -> RunFolder:
    """Return the folder of a complete run, with two files of somebody else."""
    with opened(path) as folder:
        for arm in arms:
            for seed in seeds:
                finish(folder, arm, seed)
        folder.write_summary({"experiment": "small"})
    for name in ("curves.png", "report.html", "notes.txt", "models/mine.safetensors"):
        (path / name).write_text("x")
    return folder


def everything(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_new_folder_holds_the_resolved_experiment(tmp_path):
    folder = opened(tmp_path / "a" / "b")
    assert folder.read_experiment().model_dump() == EXPERIMENT.model_dump()
    assert folder.read_rounds() == []
    assert folder.read_outcomes() == []


def test_opening_changes_nothing_and_a_start_that_fails_leaves_nothing_behind(tmp_path):
    with RunFolder.open_for(tmp_path / "a" / "b", EXPERIMENT):
        pass
    assert list(tmp_path.iterdir()) == []
    filled(tmp_path)
    before = everything(tmp_path)
    with RunFolder.open_for(tmp_path, OTHER, overwrite=True):
        pass
    assert everything(tmp_path) == before


def test_a_folder_with_files_of_others_can_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine").write_text("keep")
    opened(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "store" / "mine").read_text() == "keep"


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_kdfed_did_not_write_are_never_replaced(tmp_path, name, overwrite):
    (tmp_path / "models").mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError, match=f"holds {name}, which kdfed did not write"):
        RunFolder.open_for(tmp_path, EXPERIMENT, overwrite=overwrite)
    assert everything(tmp_path) == {tmp_path / name: b"mine"}


def test_the_list_of_what_was_written_is_not_believed_beyond_the_folder(tmp_path):
    filled(tmp_path / "run")
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "run" / "notes").mkdir()
    with open(tmp_path / "run" / ".kdfed" / "written", "a") as file:
        file.write(f"\n\n../precious\n{tmp_path / 'precious'}\nmodels/../../precious\nnotes\nnotes.txt\n")
    opened(tmp_path / "run", overwrite=True)
    assert (tmp_path / "precious").read_text() == "keep"
    assert (tmp_path / "run" / "notes.txt").exists()


def test_an_empty_list_of_what_was_written_is_none(tmp_path):
    filled(tmp_path)
    (tmp_path / ".kdfed" / "written").write_text("")
    with pytest.raises(RunFolderError, match="holds a complete run"):
        RunFolder.open_for(tmp_path, EXPERIMENT)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_or_a_link_where_a_folder_must_be_is_refused_before_anything_is_touched(tmp_path, overwrite):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "models").write_text("mine")
    with pytest.raises(RunFolderError, match="models: expected a folder"):
        RunFolder.open_for(tmp_path / "run", EXPERIMENT, overwrite=overwrite)
    assert everything(tmp_path) == {tmp_path / "run" / "models": b"mine"}
    (tmp_path / "mine" / "other").mkdir(parents=True)
    (tmp_path / "run" / "models").unlink()
    (tmp_path / "run" / ".kdfed").mkdir()
    (tmp_path / "run" / ".kdfed" / "store").symlink_to(tmp_path / "mine")
    with pytest.raises(RunFolderError, match="store: expected a folder, and no link"):
        RunFolder.open_for(tmp_path / "run", EXPERIMENT, overwrite=overwrite)
    assert (tmp_path / "mine" / "other").exists()


def test_a_model_of_somebody_else_is_not_replaced_by_another_experiment(tmp_path):
    filled(tmp_path)
    (tmp_path / "models" / "hot-0.safetensors").write_text("mine")
    with pytest.raises(RunFolderError, match=r"holds models/hot-0\.safetensors, which kdfed did not"):
        RunFolder.open_for(tmp_path, OTHER, overwrite=True)


def test_a_complete_run_is_left_as_it_is(tmp_path):
    filled(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(RunFolderError, match="holds a complete run of this experiment") as error:
        RunFolder.open_for(tmp_path, EXPERIMENT)
    assert "--overwrite" in str(error.value)
    assert error.value.exit_code == 2
    assert everything(tmp_path) == before


def test_a_complete_run_that_was_never_summed_up_is_gone_on_with(tmp_path):
    filled(tmp_path)
    (tmp_path / "summary.json").unlink()
    assert len(RunFolder.open_for(tmp_path, EXPERIMENT).finished) == 4


def test_an_incomplete_run_keeps_what_is_finished_and_moves_the_rest_aside(tmp_path):
    with filled(tmp_path, arms=("cold",)):
        pass
    loose = [replace(RECORD, arm="warm", round=number).to_json() for number in (0, 1)]
    with open(tmp_path / "rounds.jsonl", "a") as file:
        file.write("\n".join([*loose, '{"arm": "wa']))
    for store in ("cold-0", "warm-0"):
        (tmp_path / ".kdfed" / "store" / store).mkdir(parents=True)
    kept = [(r.arm, r.seed) for r in RunFolder(tmp_path).read_rounds()][:4]

    folder = opened(tmp_path)
    assert set(folder.finished) == {("cold", 0), ("cold", 1)}
    assert [(r.arm, r.seed) for r in folder.read_rounds()] == kept
    assert [(o.arm, o.seed) for o in folder.read_outcomes()] == [("cold", 0), ("cold", 1)]
    assert (tmp_path / "rounds.partial.jsonl").read_text().splitlines() == [*loose, '{"arm": "wa']
    assert (tmp_path / "models" / "cold-1.safetensors").exists()
    assert [path.name for path in (tmp_path / ".kdfed" / "store").iterdir()] == ["cold-0"]
    assert not [name for name in ("summary.json", "curves.png", "report.html") if (tmp_path / name).exists()]
    assert (tmp_path / "notes.txt").exists()


def test_runs_of_other_folders_are_joined_in_the_order_given_in_place_of_what_is_there(tmp_path):
    sources = [filled(tmp_path / str(seed), seeds=(seed,)) for seed in (0, 1)]
    with opened(tmp_path / "all") as folder:
        finish(folder, "cold", 0)
        folder.join(
            (record for run in sources for record in run.read_rounds()),
            (outcome for run in sources for outcome in run.read_outcomes()),
        )
    runs = [("cold", 0), ("warm", 0), ("cold", 1), ("warm", 1)]
    assert [(record.arm, record.seed) for record in folder.read_rounds()] == [
        run for run in runs for _ in "12"
    ]
    assert [(outcome.arm, outcome.seed) for outcome in folder.read_outcomes()] == runs


def test_one_run_can_be_dropped_and_all_others_stay(tmp_path):
    folder = filled(tmp_path, arms=("cold",))
    folder.append(replace(RECORD, arm="warm"))
    folder.drop("cold", 1)
    assert set(folder.finished) == {("cold", 0)}
    assert {(r.arm, r.seed) for r in folder.read_rounds()} == {("cold", 0), ("warm", 0)}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["model", "other model", "rounds", "outcome"])
def test_a_finished_run_that_is_not_whole_is_run_again(tmp_path, damage):
    filled(tmp_path)
    model, rounds = tmp_path / "models" / "warm-1.safetensors", tmp_path / "rounds.jsonl"
    if damage == "model":
        model.unlink()
    elif damage == "other model":
        model.write_bytes((tmp_path / "models" / "warm-0.safetensors").read_bytes())
    elif damage == "rounds":
        rounds.write_text("".join(rounds.read_text().splitlines(keepends=True)[:-1]))
    else:
        outcomes = tmp_path / "outcomes.jsonl"
        outcomes.write_text(outcomes.read_text()[:-20])
    folder = opened(tmp_path)
    assert set(folder.finished) == {("cold", 0), ("cold", 1), ("warm", 0)}
    assert {(o.arm, o.seed) for o in folder.read_outcomes()} == set(folder.finished)
    assert {(r.arm, r.seed) for r in folder.read_rounds()} == set(folder.finished)


@pytest.mark.parametrize("package", ["kdfed", "torch"])
def test_runs_of_other_versions_are_refused_with_the_choice_named(tmp_path, package):
    with opened(tmp_path) as folder:
        finish(folder, "cold", 0, versions={**versions(), package: "0.0.1"})
    before = everything(tmp_path)
    with pytest.raises(
        RunFolderError, match=f"made with {package} 0.0.1.*install {package} 0.0.1 to go on, or"
    ):
        RunFolder.open_for(tmp_path, EXPERIMENT)
    assert everything(tmp_path) == before
    assert opened(tmp_path, overwrite=True).finished == {}


def test_models_that_are_read_are_told_apart_by_what_is_in_them(tmp_path):
    """SHA-256 of the bytes "abc", as FIPS 180 gives it; of a folder those of its models, with their names."""
    file = tmp_path / "a.pt"
    file.write_bytes(b"abc")
    assert models_sha256(str(file)) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    found = [models_sha256(str(tmp_path))]
    (tmp_path / "notes.md").touch()
    assert models_sha256(str(tmp_path)) == found[0]
    for change in (
        lambda: (tmp_path / "b.pt").write_bytes(b"abc"),
        lambda: (tmp_path / "b.pt").write_bytes(b"abd"),
        lambda: (tmp_path / "b.pt").rename(tmp_path / "c.pt"),
        lambda: (tmp_path / "a.pt").unlink(),
    ):
        change()
        found.append(models_sha256(str(tmp_path)))
    assert len(set(found)) == 5
    assert models_sha256(str(tmp_path / "gone.pt")) == ""


@pytest.mark.parametrize("reads", ["start", "teachers", "folder", "weights"])
def test_runs_made_of_another_file_are_refused_with_both_hashes(tmp_path, reads):
    (tmp_path / "shelf").mkdir()
    file = tmp_path / "shelf" / "a.safetensors"
    file.write_bytes(b"first")
    arm = {
        "start": {"start": f"file:{file}"},
        "teachers": {"start": "consolidated", "teachers": {"from": [str(file)]}},
        "folder": {"start": "consolidated", "teachers": {"from": str(file.parent)}},
        "weights": {"model": {"backbone": "torchvision:resnet18", "weights": f"file:{file}"}},
    }[reads]
    experiment = build_experiment({**VALUES, "arms": {"cold": {}, "warm": arm}})
    path = str(file.parent if reads == "folder" else file)
    with opened(tmp_path / "run", experiment) as folder:
        finish(folder, "warm", 0, versions=versions(models=[path]))
        finish(folder, "cold", 0)
    assert RunFolder.open_for(tmp_path / "run", experiment).finished.keys() == {("warm", 0), ("cold", 0)}
    was = models_sha256(path)
    file.write_bytes(b"second")
    with pytest.raises(RunFolderError) as caught:
        RunFolder.open_for(tmp_path / "run", experiment)
    now = models_sha256(path)
    assert f"made with another {path}, SHA-256 {was[:12]}, now {now[:12]}; put it back" in str(caught.value)
    assert RunFolder.open_for(tmp_path / "run", experiment, overwrite=True).finished == {}


@pytest.mark.parametrize("reads", ["start", "teachers", "folder", "weights"])
def test_files_of_models_may_be_moved_and_are_still_known_by_their_hashes(tmp_path, reads):
    def experiment_of(place, name="a.safetensors"):
        file = place / "shelf" / name
        arm = {
            "start": {"start": f"file:{file}"},
            "teachers": {"start": "consolidated", "teachers": {"from": [{"file": str(file)}]}},
            "folder": {"start": "consolidated", "teachers": {"from": str(file.parent)}},
            "weights": {"model": {"backbone": "torchvision:resnet18", "weights": f"file:{file}"}},
        }[reads]
        return build_experiment({**VALUES, "arms": {"cold": {}, "warm": arm}}), file

    (tmp_path / "old" / "shelf").mkdir(parents=True)
    experiment, file = experiment_of(tmp_path / "old")
    file.write_bytes(b"first")
    with opened(tmp_path / "old" / "run", experiment) as folder:
        finish(folder, "warm", 0, versions=versions(models=models_of(experiment.arm("warm"))))
        finish(folder, "cold", 0)
    (tmp_path / "old").rename(tmp_path / "new")
    experiment, file = experiment_of(tmp_path / "new")
    with RunFolder.open_for(tmp_path / "new" / "run", experiment) as folder:
        assert folder.finished.keys() == {("warm", 0), ("cold", 0)}
    file.write_bytes(b"second")
    with pytest.raises(RunFolderError, match=r"made with another .*new.shelf"):
        RunFolder.open_for(tmp_path / "new" / "run", experiment)
    if reads != "folder":
        file.rename(file.with_name("b.safetensors"))
        with pytest.raises(RunFolderError, match=r"another experiment.*It differs in:(.|\n)*b.safetensors"):
            RunFolder.open_for(tmp_path / "new" / "run", experiment_of(tmp_path / "new", "b.safetensors")[0])


def model_at(place, content=b"first"):
    place.mkdir(parents=True, exist_ok=True)
    (place / "m").write_bytes(content)
    return place / "m"


def starting(cold, warm):
    arms = {"cold": {"start": f"file:{cold}"}, "warm": {"start": f"file:{warm}"}}
    return build_experiment({**VALUES, "arms": arms})


def made(path, experiment, known=True):
    with opened(path, experiment) as folder:
        for arm in ("cold", "warm"):
            files = models_of(experiment.arm(arm)) if known else ()
            finish(folder, arm, 0, versions=versions(models=files))


def test_a_file_that_was_moved_is_watched_afterwards(tmp_path):
    old, new = (tmp_path / name for name in ("old", "new"))
    made(tmp_path / "run", starting(model_at(old), model_at(old)))
    model_at(new)
    experiment = starting(new / "m", new / "m")
    with RunFolder.open_for(tmp_path / "run", experiment) as folder:
        assert len(folder.finished) == 2
        folder.begin()  # writes the experiment with its new paths
    (new / "m").write_bytes(b"second")
    with pytest.raises(RunFolderError, match=r"made with another .*new.m, SHA-256 .* put it back"):
        RunFolder.open_for(tmp_path / "run", experiment)
    (new / "m").unlink()
    with pytest.raises(RunFolderError, match="now nothing that can be read; put it back"):
        RunFolder.open_for(tmp_path / "run", experiment)


def test_a_moved_file_whose_hash_was_never_recorded_is_refused(tmp_path):
    made(tmp_path / "run", starting(*[model_at(tmp_path / "old")] * 2), known=False)
    with pytest.raises(RunFolderError, match="SHA-256 unknown, now"):
        RunFolder.open_for(tmp_path / "run", starting(*[model_at(tmp_path / "new")] * 2))


def test_equal_files_of_two_places_may_become_one(tmp_path):
    made(tmp_path / "run", starting(model_at(tmp_path / "x"), model_at(tmp_path / "y")))
    with RunFolder.open_for(tmp_path / "run", starting(*[model_at(tmp_path / "z")] * 2)) as folder:
        assert len(folder.finished) == 2


def test_naming_another_file_of_the_experiment_is_no_move(tmp_path):
    x, y = model_at(tmp_path / "x"), model_at(tmp_path / "y")
    made(tmp_path / "run", starting(x, y))
    for cold, warm in ((x, x), (y, x)):
        with pytest.raises(RunFolderError, match="another experiment") as caught:
            RunFolder.open_for(tmp_path / "run", starting(cold, warm))
        assert f"arms.warm.start: 'file:{y}' there, 'file:{x}' here" in str(caught.value)
        assert ("arms.cold.start" in str(caught.value)) == (cold == y)


def test_the_order_of_teachers_is_part_of_an_experiment(tmp_path):
    x, y = (str(model_at(tmp_path / name, name.encode())) for name in ("x", "y"))

    def experiment(*files):
        warm = {"start": "consolidated", "teachers": {"from": list(files)}}
        return build_experiment({**VALUES, "arms": {"cold": {}, "warm": warm}})

    made(tmp_path / "run", experiment(x, y))
    with pytest.raises(RunFolderError, match="holds another experiment"):
        RunFolder.open_for(tmp_path / "run", experiment(y, x))


def test_files_that_an_arm_does_not_read_do_not_matter(tmp_path):
    file = tmp_path / "a.pt"
    file.write_bytes(b"first")
    experiment = build_experiment({**VALUES, "teachers": {"from": [str(file)]}, "arms": {"cold": {}}})
    assert models_of(experiment.arm("cold")) == []


def test_records_of_a_release_without_outcomes_are_refused_and_can_be_replaced(tmp_path):
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT.to_yaml())
    (tmp_path / "rounds.jsonl").write_text(RECORD.to_json() + "\n")
    with pytest.raises(RunFolderError, match="an earlier release of kdfed"):
        RunFolder.open_for(tmp_path, EXPERIMENT)
    assert opened(tmp_path, overwrite=True).read_rounds() == []


def test_another_experiment_is_refused_and_the_differing_keys_are_named(tmp_path):
    filled(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(RunFolderError, match="holds another experiment") as error:
        RunFolder.open_for(tmp_path, OTHER)
    assert "partition.alpha: 0.1 there, 0.5 here" in str(error.value)
    assert "name: 'small' there, 'other' here" in str(error.value)
    assert "arms.hot: 'nothing' there, {} here" in str(error.value)
    assert "--out" in str(error.value)
    assert "seeds" not in str(error.value)
    assert everything(tmp_path) == before
    assert error.value.exit_code == 2


def test_another_order_of_arms_is_another_experiment(tmp_path):
    filled(tmp_path)
    swapped = build_experiment({**VALUES, "arms": dict(reversed(VALUES["arms"].items()))})
    with pytest.raises(RunFolderError, match="in the order cold, warm there, warm, cold here"):
        RunFolder.open_for(tmp_path, swapped)


@pytest.mark.parametrize("experiment", [EXPERIMENT, OTHER])
def test_overwrite_replaces_what_kdfed_wrote_and_nothing_else(tmp_path, experiment):
    filled(tmp_path)
    folder = opened(tmp_path, experiment, overwrite=True)
    assert folder.read_experiment().model_dump() == experiment.model_dump()
    assert not [name for name in OURS if (tmp_path / name).exists()]
    assert (tmp_path / "models" / "mine.safetensors").exists()
    assert (tmp_path / "notes.txt").exists()


def test_an_experiment_that_cannot_be_read_is_refused(tmp_path):
    filled(tmp_path)
    for damage, complaint in (("name: [", "cannot be read"), (None, r"but no experiment\.yaml")):
        (tmp_path / "experiment.yaml").unlink()
        if damage:
            (tmp_path / "experiment.yaml").write_text(damage)
        with pytest.raises(RunFolderError, match=complaint):
            RunFolder.open_for(tmp_path, EXPERIMENT)
    again = opened(tmp_path, overwrite=True).read_experiment()
    assert again.model_dump() == EXPERIMENT.model_dump()


def test_a_full_disk_in_mid_run_ends_it_with_1_and_leaves_no_half_line(tmp_path, monkeypatch):
    folder = opened(tmp_path)
    folder.append(RECORD)
    before = (tmp_path / "rounds.jsonl").read_bytes()

    class Full(io.FileIO):
        def write(self, content):
            if len(content) < 50:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content[:-20])

    monkeypatch.setattr(Path, "open", lambda path, mode, **more: Full(path, mode))
    with pytest.raises(RecordError, match=r"No space left on device\. Make room, then run the same") as error:
        folder.append(RECORD)
    assert error.value.exit_code == 1
    assert (tmp_path / "rounds.jsonl").read_bytes() == before


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="expected a folder that can be written to"):
            RunFolder.open_for(path, EXPERIMENT)


@pytest.mark.parametrize("way", ["models", "models/../models", "link"])
def test_a_start_that_the_run_would_remove_is_refused(tmp_path, way):
    filled(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "models")
    start = f"file:{tmp_path / way / 'cold-0.safetensors'}"
    follower = build_experiment(merge(VALUES, {"arms.warm.start": start}))
    with pytest.raises(RunFolderError, match="arm 'warm' starts from"):
        RunFolder.open_for(tmp_path, follower, overwrite=True)
    assert (tmp_path / "models" / "cold-0.safetensors").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_file_that_a_run_was_started_from_is_not_replaced(tmp_path, overwrite):
    file = tmp_path / "experiment.yaml"
    file.write_text("# mine\n" + EXPERIMENT.to_yaml())
    with pytest.raises(RunFolderError, match="would replace the file that it was started from"):
        RunFolder.open_for(tmp_path, EXPERIMENT, overwrite, source=file)
    assert file.read_text().startswith("# mine")
    file.write_text(EXPERIMENT.to_yaml())
    opened(tmp_path, overwrite=overwrite, source=file)


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "folder", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="expected a file that can be written"):
            write_atomically(path, b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_whether_a_file_can_be_written_is_known_before_and_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    for name, said in (
        ("folder", "expected a file, .*folder is a folder"),
        ("file", "exists already; choose another place, or replace it with --overwrite"),
        ("link", "exists already"),
        ("file/below", "expected a file that can be written, .*Not a directory"),
        ("x" * 230, "File name too long"),
        ("x" * 5000, "File name too long"),
    ):
        with pytest.raises(RunFolderError, match=said):
            check_output(tmp_path / name)
    check_output(tmp_path / "new" / "deep" / "file")
    check_output(tmp_path / "file", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_that_cannot_be_written_to_is_known_before(tmp_path, monkeypatch):
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(RunFolderError, match=r"expected a file that can be written, .*Permission denied"):
        check_output(tmp_path / "file")


def test_rounds_read_back_in_the_order_they_were_written(tmp_path):
    folder = opened(tmp_path)
    records = [replace(RECORD, arm=arm, round=r) for arm in ("warm", "cold") for r in (0, 1)]
    for count, record in enumerate(records, start=1):
        folder.append(record)
        assert folder.read_rounds() == records[:count]


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_last_line_cut_short_by_a_kill_is_dropped(tmp_path, cut):
    folder = opened(tmp_path)
    folder.append(RECORD)
    with open(tmp_path / "rounds.jsonl", "a") as file:
        file.write(RECORD.to_json()[:cut])
    assert folder.read_rounds() == [RECORD]


def test_a_broken_line_before_the_last_is_refused(tmp_path):
    folder = opened(tmp_path)
    (tmp_path / "rounds.jsonl").write_text('{"arm": "cold"}\n' + RECORD.to_json() + "\n")
    with pytest.raises(RunFolderError, match="line 1: expected a record"):
        folder.read_rounds()


def test_a_folder_without_records_says_what_it_lacks(tmp_path):
    for read, name in (
        (RunFolder(tmp_path).read_rounds, "rounds.jsonl"),
        (RunFolder(tmp_path).read_summary, "summary.json"),
        (RunFolder(tmp_path).read_experiment, "experiment.yaml"),
    ):
        with pytest.raises(RunFolderError, match=f"expected a run folder with a readable {name}"):
            read()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "expected JSON"),
        ("[]", r"expected an object, got \[\]"),
        ("{}", "experiment: expected this key"),
        (json.dumps(SUMMARY | {"runs": None}), "runs: expected a list, got None"),
        (json.dumps(SUMMARY | {"runs": [{"arm": "cold"}]}), r"runs\.0\.seed: expected this key"),
        (json.dumps(SUMMARY | {"comparisons": [3]}), r"comparisons\.0: expected an object, got 3"),
    ],
)
def test_a_broken_summary_is_refused(tmp_path, text, complaint):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(RunFolderError, match=complaint):
        RunFolder(tmp_path).read_summary()


def test_a_summary_is_written_whatever_text_it_holds(tmp_path):
    folder = opened(tmp_path)
    folder.write_summary(SUMMARY | {"engine": "a\ud800"})
    assert json.loads((tmp_path / "summary.json").read_bytes())["engine"] == "a\ud800"


def test_a_summary_reads_back_and_leaves_no_half_file(tmp_path):
    folder = opened(tmp_path)
    folder.write_summary(SUMMARY)
    assert folder.read_summary() == SUMMARY
    with pytest.raises(ValueError, match="JSON"):
        folder.write_summary({"experiment": float("nan")})
    assert folder.read_summary()["engine"] == "größer"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".kdfed", "experiment.yaml", "models", "outcomes.jsonl", "summary.json")
    ]


# ----------------------------------------------------------------------------- a horizon that was found


def test_a_horizon_that_was_found_is_kept_where_a_run_goes_on(tmp_path):
    """To find another one would make another experiment of what is finished already."""
    wanted = build_experiment(merge(VALUES, {"rounds.horizon": "auto"}))
    found = wanted.with_horizon(9, "1.5 times round 6")
    with RunFolder.open_for(tmp_path, wanted) as folder:
        assert folder.experiment == wanted
        folder.begin(found)
        assert folder.experiment == found
        finish(folder, "cold", 0)
    assert RunFolder(tmp_path).read_experiment().model_dump() == found.model_dump()
    with RunFolder.open_for(tmp_path, wanted) as again:
        assert (again.experiment.horizon, again.experiment.rounds.why) == (9, "1.5 times round 6")
        assert set(again.finished) == {("cold", 0)}


def test_a_horizon_that_was_given_is_not_taken_for_one_that_was_found(tmp_path):
    with opened(tmp_path, build_experiment(merge(VALUES, {"rounds.horizon": 9}))) as folder:
        finish(folder, "cold", 0)
    wanted = build_experiment(merge(VALUES, {"rounds.horizon": "auto"}))
    with pytest.raises(RunFolderError, match=r"another experiment.*\n.*rounds\.horizon"):
        RunFolder.open_for(tmp_path, wanted)
