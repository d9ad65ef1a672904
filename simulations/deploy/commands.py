"""``kdfed deploy``: the words of its commands. What they do is imported when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from kdfed.errors import ConfigError, Mistake, plain

app = typer.Typer(help="Real devices: write, check and watch a SuperLink and its SuperNodes.")

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR")]


@app.command()
def init(
    folder: FolderArgument,
    participants: Annotated[
        Path, typer.Option(metavar="FILE", help="YAML: the SuperLink's hosts, and everybody who takes part.")
    ],
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS and keys; for loopback hosts alone.")
    ] = False,
) -> None:
    """Write a deployment: certificates, keys, units, and a folder for every device.

    A deployment that is there gets the participants who are new in FILE; what it has is kept.
    """
    from simulations.deploy.reading import read_plan
    from simulations.deploy.writing import initialise

    console, where = Console(), folder.absolute()
    plan = read_plan(participants, insecure=insecure)
    written = initialise(where, plan, insecure=insecure)
    for name in written.kept:
        console.print(f"kept: {escape(name)}", highlight=False)
    for name in written.made:
        console.print(f"written: {escape(name)}", highlight=False)
    if not written.made:
        console.print("nothing is new")
    console.print(f"what to run where: {escape(str(where / 'README.md'))}", soft_wrap=True)


@app.command()
def register(folder: FolderArgument) -> None:
    """Register the keys of all devices at the SuperLink, which must run.

    DIR is a deployment. Keys that are registered already are left as they are.
    """
    from simulations.deploy.registering import register as register_all

    console = Console()

    def tell(name: str, node_id: str) -> None:
        console.print(f"registered: {escape(name)} as node {node_id}", highlight=False)

    done = register_all(folder, tell)
    for name in done.elsewhere:
        console.print(
            f"{escape(name)}: its key was registered by another command, so its node id is not known here",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"{len(done.now)} registered now, {len(done.before) + len(done.elsewhere)} before")


@app.command()
def renew(folder: FolderArgument) -> None:
    """Write another certificate for the SuperLink, valid from now on; its key and all devices stay.

    DIR is a deployment. The SuperLink reads it when it is restarted.
    """
    from simulations.deploy.writing import renew as renew_certificate

    file = renew_certificate(folder.absolute())
    Console().print(f"copy it to the SuperLink's machine and restart: {escape(str(file))}", soft_wrap=True)


@app.command()
def check(
    folder: FolderArgument,
    verbose: Annotated[bool, typer.Option("--verbose", help="Tell also what is as it should be.")] = False,
) -> None:
    """Say what is wrong with a deployment, or with this device, and what to change.

    DIR is a deployment, or on its own machine the folder of a device or of the SuperLink. The exit code is 1
    where something is wrong.
    """
    from simulations.deploy.checking.folders import check as check_folder

    findings = check_folder(folder.absolute())
    for finding in findings:
        if verbose or finding.level != "fine":
            print(plain(str(finding)))
    counts = {level: sum(one.level == level for one in findings) for level in ("fine", "note", "wrong")}
    print(f"{counts['wrong']} wrong, {counts['note']} to note, {counts['fine']} fine")
    if counts["wrong"]:
        raise typer.Exit(1)


@app.command()
def status(
    where: Annotated[str, typer.Argument(metavar="DIR|CONNECTION")],
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A run's folder: its roster tells examples, versions and memory."),
    ] = None,
) -> None:
    """Show who is connected.

    DIR is a deployment; CONNECTION a SuperLink in your own Flower configuration (~/.flwr/config.toml).
    """
    from simulations.deploy.flower import Flower
    from simulations.deploy.layout import is_deployment
    from simulations.deploy.reading import read_deployment
    from simulations.deploy.registering import flower_of, registered
    from simulations.deploy.roster import read_roster
    from simulations.deploy.status import rows, status_line, status_table

    folder, names, ids = Path(where), [], None
    if is_deployment(folder):
        deployment = read_deployment(folder)
        names = [one.name for one in deployment.plan.participants]
        ids, flower = None if deployment.insecure else registered(folder), flower_of(folder)
    elif folder.exists() or "/" in where:
        raise ConfigError("the command line", [Mistake("DIR", f"expected a deployment, got {where}")])
    else:
        flower = Flower(where)
    roster = [] if run is None else read_roster(run)
    found = rows(flower.nodes(), names, ids, roster)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a file folds no words
    console.print(status_table(found))
    console.print(status_line(found), markup=False, highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run folder.")] = Path("runs/devices"),
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of each arm.")] = 10,
) -> None:
    """Run a SuperLink and three devices on this machine, with TLS, keys and images of their own.

    Everything that it starts is stopped, also on Ctrl-C.
    """
    from kdfed.records import RunFolder
    from simulations.deploy.demo import run_demo
    from simulations.tables import show_results

    console = Console()
    run_demo(out, rounds, lambda words: console.print(f"demo: {escape(words)}", highlight=False))
    show_results(console, RunFolder(out))
