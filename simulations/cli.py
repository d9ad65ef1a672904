"""The ``kdfed`` command.

Exit codes: 0 the run finished; 1 it failed, or one of its arms did (what was recorded stays); 2 the input is
wrong, and nothing was started; 3 a matrix did what ``--minutes`` had time for, and jobs are left; 130, 143
and 129 interrupted by SIGINT (Ctrl-C), SIGTERM and SIGHUP. Heavy modules are imported by the command that
needs them.
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdfed import __version__
from kdfed.errors import ConfigError, KdfedError, Mistake, RunError, RunFolderError, plain
from simulations.deploy.commands import app as deploy
from simulations.engines import ENGINES
from simulations.signals import exit_code, recording_in
from simulations.streams import patient_streams

if TYPE_CHECKING:
    from kdfed.config import Experiment

SHIPPED = Path(__file__).resolve().parent
"""Where the experiments that come with kdfed are."""

MOST_NODES = 8
"""The default of ``--nodes`` goes no higher: a node with torch takes about 0.9 GB."""

NOT_ALL = 3
"""The exit code of a matrix of which ``--minutes`` left jobs."""

app = typer.Typer(
    help="How many communication rounds can knowledge distillation save a federated model?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(deploy, name="deploy", no_args_is_help=True)

# Arguments are described in the commands' docstrings: typer 0.20 loses an argument's help on click 8.5.
ExperimentArgument = Annotated[Path, typer.Argument(metavar="EXPERIMENT")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE...", help="Replace keys, e.g. partition.alpha=0.5 rounds.horizon=10."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]


def _out(text: str) -> Path:
    if not text:
        raise RunFolderError("--out: expected where to write, got ''; name it")
    return Path(text)


def _check_suffix(out: Path | None, suffix: str) -> None:
    """Refuse to write over a model, data or an experiment: such files have other suffixes."""
    if out is not None and out.suffix != suffix:
        raise RunFolderError(f"--out: expected a file {suffix}, got {out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments
        Words after the command's name. Default: those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _main(words), last=arguments is None)


def _main(words: list[str]) -> int:
    with patient_streams() as out:
        code = _run_command(words)
        out.flush()
        if out.failure is not None:
            print(f"error: cannot write the output: {out.failure.strerror}", file=sys.stderr)
            code = code or 1
    return code


def _run_command(words: Sequence[str]) -> int:
    hook = sys.excepthook  # typer replaces it
    try:
        app(expand(words), prog_name="kdfed")
    except KdfedError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return error.exit_code
    except SystemExit as end:  # how click ends
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.excepthook = hook
    return 0


def expand(words: Sequence[str]) -> list[str]:
    """Let ``--seeds 0 1 2`` and ``--set a=1 b=2`` take several values after one flag.

    Parameters
    ----------
    words
        The command line. ``--seeds`` and ``--only`` take every word up to the next option or YAML file,
        ``--set`` every word with an equals sign; all take the first word whatever it is, so that a mistake is
        reported.

    Returns
    -------
    list
        The command line with the flag repeated before every value.
    """
    takes: dict[str, Callable[[str], bool]] = {
        "--seeds": lambda word: not word.startswith("--") and not word.endswith((".yaml", ".yml")),
        "--set": lambda word: not word.startswith("--") and "=" in word,
        "--only": lambda word: not word.startswith("--") and not word.endswith((".yaml", ".yml")),
    }
    result: list[str] = []
    flag, values = "", 0
    for position, word in enumerate(words):
        if word == "--":
            return result + list(words[position:])
        name, equals, value = word.partition("=")
        if name in takes:
            flag, values = name, 1 if equals else 0
            result += [f"{name}={value}"] if equals else []
        elif flag and (takes[flag](word) or (values == 0 and not word.startswith("--"))):
            result.append(f"{flag}={word}")
            values += 1
        else:
            result += [flag] if flag and values == 0 else []  # no value at all: click says so
            result.append(word)
            flag = ""
    return result + ([flag] if flag and values == 0 else [])


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kdfed {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    experiment: ExperimentArgument,
    engine: Annotated[
        str, typer.Option(click_type=click.Choice(list(ENGINES)), help="What runs it; see `kdfed list`.")
    ] = "flower",
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes (flower, ray). Default: the cores, 8 at most."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Join this Ray cluster, or `auto` (engine ray only)."),
    ] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Keep each worker on a core of its own (engine ray only).")
    ] = False,
    assignments: SetOption = None,
    seeds: Annotated[
        list[str] | None, typer.Option(metavar="N...", help="Replace the seeds, e.g. 0 1 2.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=_out, metavar="DIR", help="The run folder. Default: runs/NAME.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the records of a complete run, or of another experiment."),
    ] = False,
) -> None:
    """Run an experiment and count what each arm paid to reach its targets.

    It counts exchanges (communication rounds, the teachers' included), participants' uploads and bytes.

    EXPERIMENT is a YAML file, or the name of one that comes with kdfed.
    """
    for option, given in (("--address", address is not None), ("--pin", pin)):
        if given and engine != "ray":
            raise ConfigError("the command line", [Mistake(option, f"needs --engine ray, got {engine!r}")])
    console, here = Console(), Path.cwd()  # what it is before any code of the user's runs
    checked = _load(experiment, assignments, seeds)
    from kdfed.records import RunFolder
    from simulations.progress import Progress
    from simulations.tables import show_results

    path = here / (out if out is not None else Path("runs") / checked.name)
    module = import_module(f"simulations.engines.{engine}")
    workers = nodes if nodes is not None else _default_nodes(checked)
    module.check(checked, nodes=workers, address=address)
    from simulations.engines.process_state import preserved

    folder = RunFolder.open_for(path, checked, overwrite=overwrite, source=experiment)
    if folder.finished:
        runs = len(checked.arms) * len(checked.seeds)
        console.print(f"going on: {len(folder.finished)} of {runs} runs (arm, seed) are finished and kept")
    logged = _size(folder.log_path)
    try:
        with folder, recording_in(folder.path), preserved(), Progress(checked, console) as progress:
            # The display and the records tell what happened.
            logging.getLogger("flwr").setLevel(logging.CRITICAL)
            more = {"address": address, "pin": pin} if engine == "ray" else {}
            module.run(checked, folder, nodes=workers, on_event=progress, **more)
    except RunError as error:
        if folder.has_summary:
            show_results(console, folder)
        logs = f"\nWarnings and tracebacks: {folder.log_path}" if _size(folder.log_path) > logged else ""
        raise RunError(f"{error}\nRecorded so far: {folder.path}{logs}") from error
    show_results(console, folder)
    if _size(folder.log_path) > logged:
        console.print(f"warnings: {escape(str(folder.log_path))}", soft_wrap=True)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


@app.command()
def study(
    study: Annotated[Path, typer.Argument(metavar="STUDY")],
    assignments: SetOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: the cores that are there.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=_out, metavar="DIR", help="The folder. Default: runs/NAME.")
    ] = None,
) -> None:
    """Compare KD methods between pre-trained models, without federation.

    STUDY is a YAML file, or the name of one that comes with kdfed. What the folder's cache holds is not
    computed again, so a study that was interrupted goes on where it stopped.
    """
    from simulations.study import load_study, run_study

    settings = load_study(_shipped(study), assignments or [])
    folder = (out if out is not None else Path("runs") / settings.name).absolute()
    console = Console()
    with recording_in(folder):
        run_study(settings, folder, workers=workers, console=console)
    console.print(f"study.json and study.html: {folder}")


@app.command()
def matrix(
    matrix: Annotated[Path, typer.Argument(metavar="MATRIX")],
    only: Annotated[list[str] | None, typer.Option(metavar="CELL...", help="Run these cells alone.")] = None,
    seeds: Annotated[
        list[str] | None, typer.Option(metavar="N...", help="Run these seeds of the cells alone.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Start no job that would not end within so many minutes."),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say how long it takes, and run nothing.")
    ] = False,
    engine: Annotated[
        str, typer.Option(click_type=click.Choice(list(ENGINES)), help="What runs a job; see `kdfed list`.")
    ] = "inprocess",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Jobs beside each other. Default: the cores that are there, 1 of other engines."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=_out, metavar="DIR", help="The folder. Default: runs/NAME.")
    ] = None,
) -> None:
    """Run many experiments whose savings are read together.

    MATRIX is a YAML file, or the name of one that comes with kdfed. What the folder holds is not run again,
    so a matrix that was interrupted goes on where it stopped. The exit code is 3 where --minutes left jobs
    for another time.
    """
    console, here = Console(), Path.cwd()
    from simulations.matrix import (
        Request,
        chosen_cells,
        default_workers,
        left_words,
        load_matrix,
        run_matrix,
    )

    plan = load_matrix(_shipped(matrix))
    wanted = chosen_cells(plan, only, seeds)
    count = workers if workers is not None else default_workers(plan, engine)
    folder, nodes = here / (out if out is not None else Path("runs") / plan.name), 1
    if engine != "inprocess":
        nodes = max(_default_nodes(cell.experiment) for cell in plan.cells)
        for cell in plan.cells:
            import_module(f"simulations.engines.{engine}").check(cell.experiment, nodes=nodes)
    with recording_in(folder):
        done = run_matrix(plan, folder, Request(wanted, count, engine, nodes, minutes, estimate), console)
        if not estimate:
            _show_matrix(console, folder)
    if done.failed:
        raise RunError("\n".join(done.failed))
    if done.left and minutes is not None:
        console.print(f"not run: {escape(left_words(done, minutes))}", soft_wrap=True)
        raise typer.Exit(NOT_ALL)


def _show_matrix(console: Console, folder: Path) -> None:
    """Print what a matrix folder says, and write its page."""
    from simulations.matrix import (
        FILE,
        build_matrix_report,
        matrix_tables,
        read_matrix,
        rivals,
        sentences,
    )

    recorded = read_matrix(folder)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a file folds no words
    build_matrix_report(folder, recorded)
    for table in matrix_tables(recorded) if recorded.cells else ():
        console.print(table, "", sep="\n")
    for rival in rivals(recorded.headline):
        for sentence in sentences(recorded, rival):
            console.print(f"{sentence.text}. {sentence.note}", markup=False, highlight=False, soft_wrap=True)
    if recorded.unfinished:
        console.print(f"not finished: {escape(', '.join(recorded.unfinished))}", soft_wrap=True)
    console.print(f"{FILE} and page: {escape(str(folder))}", soft_wrap=True)


@app.command()
def tune(
    experiment: ExperimentArgument,
    assignments: SetOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: the cores that are there.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=_out, metavar="DIR", help="The folder. Default: runs/NAME-tuning."),
    ] = None,
) -> None:
    """Search for good settings of each arm, and write an experiment that has them.

    EXPERIMENT is a YAML file with a section `tuning`, or the name of one that comes with kdfed. What the
    folder's cache holds is not run again, so a search that was interrupted goes on where it stopped.
    """
    console, here = Console(), Path.cwd()
    from simulations.tuning import load_tuning, run_tuning

    words = assignments or []
    plan = load_tuning(_shipped(experiment), words)
    folder = here / (out if out is not None else Path("runs") / f"{plan.experiment.name}-tuning")
    command = shlex.join(["kdfed", "tune", experiment.name, *(["--set", *words] if words else [])])
    with recording_in(folder):
        run_tuning(plan, folder, workers=workers, console=console, command=command)
    console.print(f"tuned.yaml and trials.csv: {escape(str(folder))}", soft_wrap=True)


@app.command()
def node(folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """Run a device: Flower's SuperNode, and a client that answers its messages.

    DIR is the device's folder, with node.yaml, certificate and key. It runs until it is told to leave
    (SIGTERM, Ctrl-C).
    """
    from clients.node import become_node

    become_node(folder)


@app.command()
def partition(
    experiment: ExperimentArgument,
    assignments: SetOption = None,
    seed: Annotated[
        str | None, typer.Option(metavar="N", help="Which draw. Default: the experiment's first seed.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=_out, metavar="PICTURE.png", help="The picture. Default: NAME-partition.png."),
    ] = None,
) -> None:
    """Show which participant holds which classes: a table, and a picture.

    EXPERIMENT is a YAML file, or the name of one that comes with kdfed.
    """
    console = Console()
    _check_suffix(out, ".png")
    checked = _load(experiment, assignments, None if seed is None else [seed])
    from kdfed.data import prepare
    from kdfed.partition import class_counts, partition_of
    from simulations.report import save_partition_picture
    from simulations.server_app import partition_entry
    from simulations.tables import partition_table

    data = prepare(checked.data)
    names, drawn = data.strata_names, checked.seeds[0]
    parts = partition_of(data, checked.partition, drawn)
    counts = class_counts(parts, data.strata, len(names))
    title = f"{checked.name}: {checked.partition.kind}, {len(counts)} participants, seed {drawn}"
    console.print(partition_table(counts, names, title))
    if parts.moved:
        console.print(f"{parts.moved} examples moved, so that everybody holds min-examples")
    if parts.unused:
        console.print(f"{parts.unused} examples are nobody's: they are not used")
    picture = out if out is not None else Path(f"{checked.name}-partition.png")
    save_partition_picture(partition_entry(data, drawn, parts), picture)
    console.print(f"picture: {escape(str(picture.absolute()))}", soft_wrap=True)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
) -> None:
    """Rebuild the pictures and the page of the run folder DIR, or of the matrix folder, from its records."""
    from kdfed.records import RunFolder
    from simulations.report import build_report
    from simulations.tables import show_results

    if (folder / "matrix.json").exists():
        _show_matrix(Console(), folder.absolute())
        return
    records = RunFolder(folder.absolute())
    build_report(records.path)
    if (records.path / "summary.json").exists():
        show_results(Console(), records)
    else:
        Console().print(f"the run did not end; report of what it recorded: {escape(str(records.path))}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    source: Annotated[str, typer.Argument(metavar="SOURCE")],
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE...",
            help="Replace keys of `data`, e.g. data.limit=100. Default: as the model was trained.",
        ),
    ] = None,
    named: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME",
            help="The name of a model of your own (package.module:name): it is code, and is run.",
        ),
    ] = "",
    weights: Annotated[
        str,
        typer.Option(
            metavar="WEIGHTS",
            help="Where those of its backbone are: installed, download or file:PATH. Default: as it says.",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(parser=_out, metavar="FILE.csv", help="Write the rows there. Default: print them."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Use a saved model: the class and its probability, or the number, of each example of a source.

    MODEL is a file like runs/quickstart/models/consolidated-0.safetensors, SOURCE is what `data.source` of an
    experiment can be, see `kdfed list`; a table or a folder of images needs no labels. Where there are some,
    the accuracy (or R^2) is told.
    """
    from kdfed.named import search_in
    from kdfed.records import check_output, write_atomically
    from kdfed.saved import load
    from simulations.predicting import predict_source

    _check_suffix(out, ".csv")
    if out is not None:
        check_output(out, overwrite=overwrite)
    search_in(Path.cwd())
    found = predict_source(load(model, model=named, weights=weights), source, assignments or ())
    if out is None:
        rows = found.csv()  # names of classes come from the file: a terminal does not obey them
        sys.stdout.write(plain(rows) if sys.stdout.isatty() else rows)
        print(found.line, file=sys.stderr)
        return
    write_atomically(out, found.csv().encode(errors="backslashreplace"))
    Console().print(f"{found.line}; rows: {escape(str(out.absolute()))}", soft_wrap=True)


@app.command()
def consolidate(
    teachers: Annotated[list[str], typer.Argument(metavar="TEACHER...")],
    student: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="A model's name, {name: ..., options: ...}, or a file to start from."
        ),
    ],
    transfer: Annotated[
        str, typer.Option(metavar="SOURCE", help="The examples: what `data.source` can be, see `kdfed list`.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=_out, metavar="STUDENT.safetensors", help="The student; the page is written beside it."
        ),
    ],
    method: Annotated[str, typer.Option(metavar="METHOD", help="The KD method. Default: vanilla.")] = "",
    labels: Annotated[bool, typer.Option("--labels", help="Use the labels of the transfer set too.")] = False,
    teacher_model: Annotated[
        str, typer.Option(metavar="MODEL", help="The model of teachers whose files say none.")
    ] = "",
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE...",
            help="Keys of `data` and `consolidation`, `device` and `threads`, as in an experiment.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of every draw.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Distil models that exist already into one student, without any federation.

    TEACHER is a file, a folder of files, or a mapping that says more: '{file: old.pt, model: {name: cnn}}'. A
    file is a model of a run (runs/NAME/models/*.safetensors), or any other .safetensors, .pt or .pth with the
    name of its model (old.pt=resnet18). Nothing in a file is run.
    """
    from kdfed.named import search_in
    from kdfed.records import write_atomically
    from kdfed.saved import save
    from simulations.consolidating import Request, comparison_tables, plan_of, render, run_plan
    from simulations.consolidating.report import measured_words, unknown_words
    from simulations.engines.process_state import preserved
    from simulations.workers import progress_on

    search_in(Path.cwd())
    console = Console()
    request = Request(
        teachers, student, transfer, out, method, labels, teacher_model, assignments or (), seed, overwrite
    )
    plan = plan_of(request)
    with preserved(), progress_on(console) as progress:
        bar = progress.add_task("distilling", total=None)
        outcome = run_plan(plan, lambda epoch, epochs, _: progress.update(bar, total=epochs, completed=epoch))
    save(out, outcome.state, plan.card)
    write_atomically(plan.page, render(plan, outcome).encode(errors="backslashreplace"))
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a file folds no words
    for table in comparison_tables(plan, outcome):
        console.print(table, "", sep="\n")
    console.print(measured_words(plan, outcome), soft_wrap=True)
    for warning in filter(None, (unknown_words(plan), outcome.result.warning)):
        console.print(f"warning: {escape(warning)}", soft_wrap=True)
    console.print(f"student: {escape(str(out.absolute()))}", soft_wrap=True)
    console.print(f"page: {escape(str(plan.page.absolute()))}", soft_wrap=True)


@app.command("list")
def list_() -> None:
    """List what an experiment can name, with one line each."""
    console = Console()
    for title, entries in catalogue().items():
        table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column()
        for name, line in entries.items():
            table.add_row(escape(name), escape(line))
        console.print(table, "", sep="\n")


def catalogue() -> dict[str, dict[str, str]]:
    """Return what an experiment can name, by kind: name -> one line, read from where it is defined."""
    from kdfed.backbones import BACKBONES
    from kdfed.data import SOURCES
    from kdfed.models import MODELS
    from kdfed.task import TASKS
    from simulations.experiments import FAMILIES

    matrices = _shipped_files("matrix*.yaml")
    return {
        "tasks (data.task)": _lines(TASKS),
        **{
            f"{family.plural} ({family.key})": {
                **_lines(family.members),
                "package.module:name": f"a class of yours, derived from {family.base.__module__}."
                f"{family.base.__name__}",
            }
            for family in FAMILIES
        },
        "data sources (data.source)": _lines(SOURCES),
        "models (model.name)": _lines(MODELS),
        "backbones (model.backbone)": _lines(BACKBONES),
        "engines (--engine)": ENGINES,
        "experiments that come with kdfed (kdfed run)": _shipped_files(
            "*.yaml", but=("study-*.yaml", "matrix*.yaml")
        ),
        **({"matrices that come with kdfed (kdfed matrix)": matrices} if matrices else {}),
        "studies that come with kdfed (kdfed study)": _shipped_files("study-*.yaml"),
    }


def _shipped_files(pattern: str, but: Sequence[str] = ()) -> dict[str, str]:
    files = [
        path for path in sorted(SHIPPED.glob(pattern)) if not any(fnmatch(path.name, other) for other in but)
    ]
    return {path.name: _first_comment(path) for path in files}


def _lines(registry: Mapping[str, Any]) -> dict[str, str]:
    return {name: _line(entry) for name, entry in registry.items()}


def _line(entry: Any) -> str:
    """Return an entry's one-line description: itself, its ``description``, or the start of its docstring."""
    text = entry if isinstance(entry, str) else getattr(entry, "description", None) or entry.__doc__ or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "")


def _first_comment(path: Path) -> str:
    """Return the first sentence of the comment at the top of a YAML file."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"(?<=[.?!])\s", " ".join(line.lstrip("# ") for line in lines), maxsplit=1)[0]


def _load(path: Path, assignments: list[str] | None, seeds: list[str] | None) -> Experiment:
    """Read an experiment and check it, its data included; every mistake is reported before anything runs."""
    from kdfed.config import unrelated
    from simulations.experiments import examine_experiment

    path = _shipped(path)
    experiment, mistakes = examine_experiment(path, assignments or (), seeds)
    sections = {mistake.key.partition(".")[0] for mistake in mistakes}
    if experiment is not None and not sections & {"data", "partition"}:
        from kdfed.preflight import check_data

        mistakes += unrelated(check_data(experiment), mistakes)
    if mistakes or experiment is None:
        raise ConfigError(str(path), mistakes)
    return experiment


def _shipped(path: Path) -> Path:
    """Return the file of this name that comes with kdfed, unless there is one here."""
    shipped = SHIPPED / path.name
    return shipped if path.parent == Path() and not path.exists() and shipped.is_file() else path


def _default_nodes(experiment: Experiment) -> int:
    from os import cpu_count

    return min(cpu_count() or 1, experiment.partition.participants, MOST_NODES)


if __name__ == "__main__":
    sys.exit(main())
