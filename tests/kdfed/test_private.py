"""Private names of other libraries: every entry does what it is for, and nobody goes past them."""

from __future__ import annotations

import ast
import inspect
import logging
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAdam, FedAvg, Strategy

from simulations.deploy.credentials import new_device_key
from simulations.deploy.pages import connection
from simulations.deploy.programs import superlink_command
from simulations.deploy.settings import Plan
from tests.simulations.deploy.conftest import LOCAL, PLAN

ROOT = Path(__file__).parents[2]
LIBRARIES = {"flwr": "flwr", "ray": "ray", "flwr_datasets": "flwr-datasets"}
"""Module of kdfed.private -> the package that it is about."""

Check = Callable[[Any, SimpleNamespace], None]

CHECKS: dict[str, Check] = {}
"""Entry, as ``flwr.name_message`` -> what looks whether it does what it is for."""


def check(entry: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        CHECKS[entry] = function
        return function

    return register


def look_at(entry: str, given: SimpleNamespace) -> None:
    """Do with an entry what kdfed does with it; a failure names its module, the entry and the release."""
    library, _, name = entry.partition(".")
    try:
        CHECKS[entry](getattr(import_module(f"kdfed.private.{library}"), name), given)
    except (Exception, pytest.fail.Exception) as error:
        package = LIBRARIES[library]
        raise AssertionError(
            f"kdfed/private/{library}.py: {name} does not do what it is for with {package} "
            f"{version(package)}: {type(error).__name__}: {error}\nIts text says what to do when it moves."
        ) from error


@pytest.fixture
def given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> SimpleNamespace:
    return SimpleNamespace(monkeypatch=monkeypatch, capsys=capsys, folder=tmp_path, grid=None, context=None)


class Empty(Strategy):
    """Sends nothing."""

    def configure_train(self, *args: Any) -> Any:
        return []

    aggregate_train = configure_evaluate = aggregate_evaluate = configure_train
    summary = configure_train


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_entry_is_looked_at(library: str) -> None:
    named = [f"{library}.{name}" for name in import_module(f"kdfed.private.{library}").__all__]
    assert sorted(named) == sorted(entry for entry in CHECKS if entry.partition(".")[0] == library)


# ----------------------------------------------------------------------------- Flower


def asked() -> Message:
    import_module("kdfed.private.flwr").identify(1, 1)
    return Message(RecordDict(), 1001, "train")


@check("flwr.Run")
def a_grid_has_such_a_run(run: Any, given: SimpleNamespace) -> None:
    assert Grid.run.fget is not None
    assert get_type_hints(Grid.run.fget)["return"] is run


@check("flwr.NodeInfo")
def a_grid_has_such_nodes(info: Any, given: SimpleNamespace) -> None:
    assert get_args(get_type_hints(Grid.get_nodes)["return"]) == (info,)


@check("flwr.empty_run")
def an_empty_run_is_the_first(empty_run: Any, given: SimpleNamespace) -> None:
    assert (type(empty_run()).__name__, empty_run().run_id) == ("Run", 1)


@check("flwr.Identity")
def an_identity_has_three_parts(kind: Any, given: SimpleNamespace) -> None:
    identity = import_module("flwr.supercore.task_identity").TaskIdentity
    assert {f"_{name}" for name in kind._fields} <= set(vars(identity))


@check("flwr.name_message")
def a_name_stays_through_a_reply(name_message: Any, given: SimpleNamespace) -> None:
    message = asked()
    assert message.metadata.message_id == ""
    name_message(message, "m")
    reply = Message(RecordDict(), reply_to=message)
    assert (message.metadata.message_id, reply.metadata.reply_to_message_id) == ("m", "m")
    name_message(reply, "r")
    assert (reply.metadata.message_id, reply.metadata.reply_to_message_id) == ("r", "m")


@check("flwr.error_reply")
def an_error_reply_says_that_the_app_raised(error_reply: Any, given: SimpleNamespace) -> None:
    reply = error_reply(asked(), "ValueError: x")
    assert (reply.has_error(), reply.error.code, reply.error.reason) == (True, 2, "ValueError: x")


@check("flwr.identify")
def a_message_is_of_whoever_made_it(identify: Any, given: SimpleNamespace) -> None:
    identify(5, 6)
    made = Message(RecordDict(), 1001, "train").metadata
    assert (made.run_id, made.src_node_id) == (5, 6)


@check("flwr.identity")
def an_identity_is_what_was_said(identity: Any, given: SimpleNamespace) -> None:
    asked()
    assert identity() == (1, 1, 1)


@check("flwr.restore")
def nothing_said_is_put_back(restore: Any, given: SimpleNamespace) -> None:
    flower = import_module("kdfed.private.flwr")
    asked()
    before = flower.identity()
    restore(flower.Identity(None, None, None))
    assert flower.identity() == (None, None, None)
    with pytest.raises(RuntimeError, match="is not set"):
        Message(RecordDict(), 1001, "train")
    restore(before)
    assert flower.identity() == before


@check("flwr.flat_view")
def a_view_is_what_flower_decodes(flat_view: Any, given: SimpleNamespace) -> None:
    for dtype in ("float16", "float32", "float64", "int64", "int32", "uint8", "bool", "complex64"):
        for shape in ((), (0,), (7,), (2, 3), (1, 2, 3, 4)):
            values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
            array = Array(values)
            view = flat_view(array, shape, dtype)
            assert view is not None, (dtype, shape)
            assert view.dtype == values.dtype
            assert np.array_equal(view.reshape(shape), array.numpy())
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    for other in (np.asfortranarray(matrix), matrix.astype(">f4"), matrix.reshape(3, 2), matrix.astype("f8")):
        assert flat_view(Array(other), (2, 3), "float32") is None
    longer = Array(matrix)
    longer.data += bytes(4)
    assert flat_view(longer, (2, 3), "float32") is None
    elsewhere = Array(matrix)
    elsewhere.stype = "somebody's own"
    assert flat_view(elsewhere, (2, 3), "float32") is None


@check("flwr.aggregate_metrics")
def a_strategy_that_was_given_none_has_it(aggregate_metrics: Any, given: SimpleNamespace) -> None:
    for strategy in (FedAvg(), FedAdam()):
        assert strategy.train_metrics_aggr_fn is aggregate_metrics
        assert strategy.evaluate_metrics_aggr_fn is aggregate_metrics


@check("flwr.log_start")
def rounds_are_logged(log_start: Any, given: SimpleNamespace) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        log_start(7, ArrayRecord([np.zeros(3)]), ConfigRecord({"lr": 0.5}), None)
    finally:
        logger.removeHandler(handler)
    assert "Number of rounds: 7" in "\n".join(lines)
    assert "lr" in "\n".join(lines)


@check("flwr.readdressed")
def a_reply_still_answers_the_message(readdressed: Any, given: SimpleNamespace) -> None:
    identify, name_message = (
        getattr(import_module("kdfed.private.flwr"), n) for n in ("identify", "name_message")
    )
    identify(1, 1)
    asked = Message(RecordDict(), 7, "train.teacher")
    name_message(asked, "the-id")
    content = RecordDict({"config": ConfigRecord({"lr": 0.5})})
    changed = readdressed(asked, "train", content)
    assert (changed.metadata.message_type, changed.content) == ("train", content)
    assert (asked.metadata.message_type, len(asked.content)) == ("train.teacher", 0)
    assert Message(RecordDict(), reply_to=changed).metadata.reply_to_message_id == "the-id"


@check("flwr.CLIPPING_NORM")
def a_strategy_tells_it_and_a_mod_wants_it(key: Any, given: SimpleNamespace) -> None:
    strategy = DifferentialPrivacyClientSideFixedClipping(Empty(), 1.0, 0.5, 3)
    config = ConfigRecord()
    strategy.configure_train(1, ArrayRecord(), config, given.grid)
    assert dict(config) == {key: 0.5}
    message = asked()
    message.content["arrays"], message.content["config"] = ArrayRecord(), ConfigRecord({"lr": 0.1})
    reply = fixedclipping_mod(message, given.context, lambda message, context: message)
    assert repr(key) in reply.error.reason


@check("flwr.is_network")
def a_superlinks_grid_is_one_and_a_simulations_is_not(is_network: Any, given: SimpleNamespace) -> None:
    grids = import_module("flwr.superlink.grid")
    assert is_network(object.__new__(grids.HttpGrid))
    assert not is_network(object.__new__(grids.InMemoryGrid))
    runner = inspect.getsource(import_module("flwr.superlink.runtime.run_serverapp"))
    assert "HttpGrid(" in runner, "a ServerApp on a SuperLink gets another grid"
    simulation = inspect.getsource(import_module("flwr.simulation.run_simulation"))
    assert "InMemoryGrid(" in simulation, "a ServerApp of a simulation gets another grid"


@check("flwr.SIMULATION_ACTORS")
def there_are_such_actors(names: Any, given: SimpleNamespace) -> None:
    pytest.importorskip("ray")
    for name in names:
        module, _, attribute = name.rpartition(".")
        actor = getattr(import_module(module), attribute)
        assert callable(actor.options), "no longer a Ray actor"


@check("flwr.HEALTH")
def a_superlink_answers_there(path: Any, given: SimpleNamespace) -> None:
    router = import_module("flwr.supercore.routers.health.router").router
    assert path in {route.path for route in router.routes}


@check("flwr.COMPLETED")
def those_are_flowers_words(text: Any, given: SimpleNamespace) -> None:
    constants = import_module("flwr.common.constant")
    assert text == f"{constants.Status.FINISHED}:{constants.SubStatus.COMPLETED}"


@check("flwr.RunState")
def a_state_knows_flowers_words(state: Any, given: SimpleNamespace) -> None:
    words = import_module("flwr.common.constant").Status
    ended = [word for word in (words.PENDING, words.RUNNING, words.FINISHED) if state(word, "", "").finished]
    assert ended == [words.FINISHED]
    assert state("finished", "failed", "").text == "finished:failed"


@check("flwr.silent_environment")
def flower_reads_what_keeps_it_silent(environment: Any, given: SimpleNamespace) -> None:
    update = import_module("flwr.supercore.constant").FLWR_DISABLE_UPDATE_CHECK
    assert set(environment()) == {update, "FLWR_TELEMETRY_ENABLED"}
    assert hasattr(import_module("flwr.supercore.telemetry"), "FLWR_TELEMETRY_ENABLED")


@check("flwr.superlink_environment")
def flower_reads_those_variables(environment: Any, given: SimpleNamespace) -> None:
    common = import_module("flwr.common.constant")
    assert set(environment(Path("home"))) == {
        common.FLWR_HOME,
        common.FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION,
        import_module("flwr.supercore.constant").FLWR_DISABLE_UPDATE_CHECK,
        import_module("flwr.supercore.superexec.run_superexec")._TASK_POLL_INTERVAL_ENV,
        "FLWR_TELEMETRY_ENABLED",
    }
    assert hasattr(import_module("flwr.supercore.telemetry"), "FLWR_TELEMETRY_ENABLED")


@check("flwr.submitted")
def an_answer_is_read(submitted: Any, given: SimpleNamespace) -> None:
    import_module("flwr.supercore.logger").print_json_error("no app", ValueError("here"))
    assert submitted(given.capsys.readouterr().out) == (None, "no app\nhere")
    assert submitted('{"success": true, "run-id": "7"}') == (7, "")
    assert submitted("no JSON") == submitted("{}") == (None, "")
    source = inspect.getsource(import_module("flwr.cli.run.run"))
    assert {key for key in ("success", "run-id") if f'"{key}":' in source} == {"success", "run-id"}


@check("flwr.Control")
def a_superlink_is_asked(control: Any, given: SimpleNamespace) -> None:
    replies, messages = import_module("flwr.proto.control_pb2"), import_module("flwr.proto.run_pb2")
    client = import_module("flwr.supercore.control").ControlHttpClient
    status = messages.RunStatus(status="finished", sub_status="failed", details="why")
    questions = []

    def runs(self: Any, request: Any) -> Any:
        questions.append(request)
        return replies.ListRunsResponse(run_dict={request.run_id: messages.Run(status=status)})

    def logs(self: Any, request: Any) -> Any:
        questions.append(request)
        yield from (replies.StreamLogsResponse(log_output=text) for text in ("one\n", "two\n"))

    assert callable(client.ListRuns)
    assert callable(client.StreamLogs)
    given.monkeypatch.setattr(client, "ListRuns", runs)
    given.monkeypatch.setattr(client, "StreamLogs", logs)
    asking = control("127.0.0.1:1")
    assert asking.state(7) == ("finished", "failed", "why")
    assert "".join(asking.log(7)) == "one\ntwo\n"
    assert [question.run_id for question in questions] == [7, 7]
    asking.close()


@check("flwr.WARM_RELEASES")
def they_are_what_pyproject_allows(releases: Any, given: SimpleNamespace) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (allowed,) = [one for one in project["dependencies"] if one.startswith("flwr")]
    after = f"1.{int(releases[-1].partition('.')[2]) + 1}"
    assert allowed == f"flwr>={releases[0]},<{after}"


@check("flwr.warm_release")
def an_installed_release_is_known_or_not(warm_release: Any, given: SimpleNamespace) -> None:
    assert version("flwr").startswith(f"{warm_release()}.")
    given.monkeypatch.setattr("kdfed.private.flwr.version", lambda name: "1.99.0")
    assert warm_release() is None


@check("flwr.node_environment")
def flower_reads_them_on_a_device_too(environment: Any, given: SimpleNamespace) -> None:
    whole = import_module("kdfed.private.flwr").superlink_environment(Path("home"))
    assert environment(Path("home")).items() <= whole.items()
    assert "FLWR_TELEMETRY_ENABLED" in environment(Path("home"))


def held_by_a_supernode(on_message: Any) -> Any:
    """Return the state of a SuperNode that holds one message with its task, and nothing else."""
    flower = import_module("kdfed.private.flwr")
    store = import_module("flwr.supercore.object_store").ObjectStoreFactory().store()
    state = flower._node_state(on_message)(store)
    message = asked()
    flower.name_message(message, message.object_id)
    task_id = state.create_task("flwr-clientapp", message.metadata.run_id, None)
    state.store_message(message)
    return state, message, task_id


@check("flwr.SuperNode")
def a_supernode_tells_of_messages_and_answers_for_the_dead(kind: Any, given: SimpleNamespace) -> None:
    loop = inspect.getsource(import_module("flwr.supernode.start_client_internal"))
    assert set(re.findall(r"\btime\.\w+\(.*", loop)) == {"time.sleep(3)", "time.sleep(0.5)"}
    factory = import_module("flwr.supernode.nodestate.nodestate_factory")
    assert "InMemoryNodeState(" in inspect.getsource(factory.NodeStateFactory)
    assert callable(import_module("flwr.supercore.app_utils").start_parent_process_monitor)
    assert callable(import_module("flwr.supernode.cli.flower_supernode").flower_supernode)

    told: list[str] = []
    supernode = kind(lambda: told.append("a message"))
    waits: list[float] = []
    now = iter([100.0, 100.0, 110.0, 200.0])
    clock = SimpleNamespace(sleep=waits.append, monotonic=lambda: next(now))
    given.monkeypatch.setattr("kdfed.private.flwr.time", clock)
    state, message, task_id = held_by_a_supernode(supernode._stored)
    assert told == ["a message"]
    for seconds in (3.0, 3.0, 3.0):
        supernode.sleep(seconds)
    assert waits == [0.25, 1.0, 3.0]
    given.monkeypatch.undo()

    assert state.finish_task(task_id, "failed", "kdfed: the process was killed")
    (reply,) = state.get_messages_legacy(is_reply=True)
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert reply.error.reason == "the process was killed"
    assert told == ["a message"]


@check("flwr.NodeTask")
def a_task_has_a_number_and_a_token(kind: Any, given: SimpleNamespace) -> None:
    assert {"task", "token"} <= set(
        import_module("flwr.proto.runtime_pb2").AcquireTaskResponse.DESCRIPTOR.fields_by_name
    )
    assert kind(7, "t") == (7, "t")


@check("flwr.NodeTasks")
def a_supernode_is_asked_for_tasks(kind: Any, given: SimpleNamespace) -> None:
    replies = import_module("flwr.proto.runtime_pb2")
    task = import_module("flwr.proto.task_pb2").Task(task_id=7, type="flwr-clientapp")
    client = import_module("flwr.supercore.runtime").RuntimeHttpClient
    httpx = import_module("httpx")
    questions: list[Any] = []
    answers = iter([replies.AcquireTaskResponse(task=task, token="t"), replies.AcquireTaskResponse()])
    assert callable(client.AcquireTask)
    assert callable(client.PushTaskOutput)

    def acquire(self: Any, request: Any) -> Any:
        questions.append(request)
        answer = next(answers, None)
        if answer is None:
            raise httpx.ConnectError("nobody is there")
        return answer

    given.monkeypatch.setattr(client, "AcquireTask", acquire)
    given.monkeypatch.setattr(client, "PushTaskOutput", lambda self, request: questions.append(request))
    tasks = kind("127.0.0.1:1")
    found = [tasks.next() for _ in range(3)]
    assert found == [(7, "t"), None, None]
    assert list(questions[0].supported_task_types) == ["flwr-clientapp"]
    tasks.fail(found[0], "it was killed")
    assert (questions[-1].sub_status, questions[-1].details) == ("failed", "kdfed: it was killed")
    tasks.close()


@check("flwr.answer_task")
def a_task_is_answered_by_flowers_own_client(answer: Any, given: SimpleNamespace) -> None:
    module = import_module("flwr.supernode.runtime.run_clientapp")
    called: list[dict[str, Any]] = []
    names = set(inspect.signature(module.run_clientapp).parameters)
    given.monkeypatch.setattr(module, "run_clientapp", lambda **words: called.append(words))
    answer("127.0.0.1:1", import_module("kdfed.private.flwr").NodeTask(7, "t"), 5)
    (words,) = called
    assert set(words) <= names
    assert (words["runtime_api_address"], words["token"], words["parent_pid"]) == ("127.0.0.1:1", "t", 5)


@check("flwr.sample_nodes")
def a_strategy_samples_with_it(sample_nodes: Any, given: SimpleNamespace) -> None:
    assert FedAvg.configure_train.__globals__["sample_nodes"] is sample_nodes


@check("flwr.SAMPLING_SLEEP")
def it_sleeps_between_two_looks(name: Any, given: SimpleNamespace) -> None:
    module, _, attribute = name.rpartition(".")
    assert import_module(module).sample_nodes.__globals__[attribute] is import_module("time").sleep


@check("flwr.app_bundle")
def an_app_is_packed(bundle: Any, given: SimpleNamespace) -> None:
    (given.folder / "pyproject.toml").write_text(APP)
    assert bundle(given.folder).startswith(b"PK")


@check("flwr.app_complaints")
def an_app_that_is_in_order_is_not_complained_about(complaints: Any, given: SimpleNamespace) -> None:
    app = given.folder / "pyproject.toml"
    app.write_text(APP)
    assert complaints(app) == []


APP = """
[project]
name = "app"
version = "1"
description = "a test"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "simulations.server_app:app"
clientapp = "clients.client_app:app"
"""


# ----------------------------------------------------------------------------- Ray


@check("ray.WORKER_NICENESS")
@check("ray.INLINE_LIMIT")
def rays_own_programs_know(name: Any, given: SimpleNamespace) -> None:
    """Ray's programs are compiled, so the name is looked for in one of them."""
    ray = pytest.importorskip("ray")
    program = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"
    assert name.removeprefix("RAY_").encode() in program.read_bytes()


@check("ray.actor_class")
def a_process_that_is_no_actor_has_no_class(actor_class: Any, given: SimpleNamespace) -> None:
    ray = pytest.importorskip("ray")
    worker = ray._private.worker.global_worker
    assert isinstance(worker.actors, dict)
    assert hasattr(worker, "actor_id")
    assert actor_class() is None


@check("ray.around_last_stop")
def the_last_stop_is_wrapped(around_last_stop: Any, given: SimpleNamespace) -> None:
    ray = pytest.importorskip("ray")
    stopped: list[str] = []

    class Node:
        def kill_all_processes(self, *arguments: object, **options: object) -> None:
            stopped.append("node")

    assert callable(import_module("ray._private.node").Node.kill_all_processes)
    assert "_global_node.kill_all_processes(" in inspect.getsource(ray.shutdown)
    around_last_stop(lambda kill: kill)  # no driver: nothing to wrap
    node = Node()
    given.monkeypatch.setattr(ray._private.worker, "_global_node", node)
    around_last_stop(lambda kill: lambda: (stopped.append("before"), kill()))
    node.kill_all_processes()
    assert stopped == ["before", "node"]


@check("ray.find_cluster")
def no_cluster_is_an_error_at_once(find_cluster: Any, given: SimpleNamespace) -> None:
    pytest.importorskip("ray")
    given.monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find_cluster() == "10.0.0.1:6379"


@check("ray.TEMPORARY_FOLDER")
def a_temporary_folder_is_taken(name: Any, given: SimpleNamespace) -> None:
    pytest.importorskip("ray")
    given.monkeypatch.setenv(name, str(given.folder))
    assert import_module("ray._common.utils").get_default_system_temp_dir() == str(given.folder)


@check("ray.TEMPORARY_OPTION")
def ray_takes_that_option(name: Any, given: SimpleNamespace) -> None:
    ray = pytest.importorskip("ray")
    assert f'"{name}"' in inspect.getsource(ray.init)


@check("ray.GPU_WARNING")
def ray_warns_of_that_variable(name: Any, given: SimpleNamespace) -> None:
    pytest.importorskip("ray")
    assert name == import_module("ray._private.accelerators").RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR


# ----------------------------------------------------------------------------- flwr-datasets


@check("flwr_datasets.label_table")
def partitioners_ask_for_no_more(label_table: Any, given: SimpleNamespace) -> None:
    partitioners = pytest.importorskip("flwr_datasets.partitioner")
    labels = np.arange(40) % 4
    for partitioner in (
        partitioners.DirichletPartitioner(2, "label", 1.0, min_partition_size=0, self_balancing=False),
        partitioners.PathologicalPartitioner(4, "label", 1, "deterministic"),
    ):
        partitioner.dataset = label_table(labels)
        parts = [partitioner.load_partition(part) for part in range(partitioner.num_partitions)]
        assert all(isinstance(part, np.ndarray) for part in parts)
        assert sorted(np.concatenate(parts).tolist()) == list(range(40))


# ----------------------------------------------------------------------------- the guard


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's
@pytest.mark.parametrize("entry", sorted(CHECKS))
def test_an_entry_does_what_it_is_for(entry: str, given: SimpleNamespace) -> None:
    look_at(entry, given)


def test_an_entry_that_has_moved_is_named(given: SimpleNamespace) -> None:
    given.monkeypatch.setitem(sys.modules, "flwr.supercore.control", None)
    with pytest.raises(AssertionError, match=r"kdfed/private/flwr\.py: Control does not .* with flwr 1\."):
        look_at("flwr.Control", given)


def test_an_entry_that_does_something_else_is_named(given: SimpleNamespace) -> None:
    given.monkeypatch.setattr("kdfed.private.flwr.name_message", lambda message, message_id: None)
    with pytest.raises(AssertionError, match=r"kdfed/private/flwr\.py: name_message does not do"):
        look_at("flwr.name_message", given)


OURS = ("kdfed", "strategies", "clients", "simulations")

PUBLIC = ("app", "serverapp", "serverapp.strategy", "clientapp", "clientapp.mod")
"""Modules of flwr whose ``__all__`` is documented; of ``flwr.simulation`` only one name is."""

PRIVATE = re.compile(
    r"\b_message_id\b|\bray\._\w+|\bflwr\.(?:cli|common|proto|server|supercore|superlink|supernode)\b"
    r"|\bflwr\.simulation\.ray\w+|\bstrategy_utils\b|\bTaskIdentity\b|\bErrorCode\b|\bwrite_array_header\w+"
    r"|\b_global_node\b|\bkill_all_processes\b"
)
"""What no text of Python may name, be it code, a string or a comment."""

VARIABLES = re.compile(r"\b(?:RAY|FLWR)_(?!ADDRESS\b|USAGE_STATS_ENABLED\b|HOME\b)\w+")
"""Variables that no page lists. Tests may name them, to see whether they arrive."""


def past(text: str, *, ours: bool) -> Iterator[str]:
    """Yield what a file uses that belongs into kdfed.private."""
    public = {f"flwr.{name}": import_module(f"flwr.{name}").__all__ for name in PUBLIC}
    public["flwr.simulation"] = ["run_simulation"]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith(("flwr.", "ray._")) and name.name not in public:
                    yield f"line {node.lineno}: {name.name}"
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "flwr":
            known = public.get(node.module, [])
            yield from (
                f"line {node.lineno}: {node.module}.{name.name}"
                for name in node.names
                if name.name not in known and f"{node.module}.{name.name}" not in public
            )
    for number, line in enumerate(text.splitlines(), 1):
        for pattern in (PRIVATE, VARIABLES) if ours else (PRIVATE,):
            yield from (f"line {number}: {found.group()}" for found in pattern.finditer(line))


# ----------------------------------------------------------------------------- what Flower reads of ours


def test_flower_registers_the_key_that_a_deployment_makes(tmp_path: Path) -> None:
    read = import_module("flwr.cli.supernode.register").try_load_public_key
    pair = new_device_key("north")
    (tmp_path / "key.pub").write_bytes(pair.public)
    private = serialization.load_ssh_private_key(pair.private, None)
    assert serialization.load_pem_public_key(read(tmp_path / "key.pub")) == private.public_key()


@pytest.mark.parametrize("insecure", [False, True])
def test_flower_reads_the_connection_of_a_deployment(tmp_path: Path, insecure: bool) -> None:
    read = import_module("flwr.cli.flower_config").parse_superlink_connection
    folder = tmp_path / 'a "b" ü'
    (folder / "superlink").mkdir(parents=True)
    (folder / "superlink" / "ca.crt").touch()
    values = tomllib.loads(connection(Plan.model_validate(LOCAL), folder, insecure=insecure))
    assert values["superlink"]["default"] == "kdfed"
    found = read(values["superlink"]["kdfed"], "kdfed")
    assert (found.address, found.insecure) == ("127.0.0.1:42101", insecure)
    assert found.root_certificates == (None if insecure else str(folder / "superlink" / "ca.crt"))


def test_every_option_of_the_superlinks_start_command_is_one_of_flowers() -> None:
    parser = import_module("flwr.superlink.cli.flower_superlink")._parse_args_run_superlink()
    for insecure, values in ((False, PLAN), (True, LOCAL)):
        words = superlink_command(Plan.model_validate(values), insecure=insecure)
        found = parser.parse_args(words[1:])
        assert found.port == values["superlink"]["port"]
        assert found.enable_supernode_auth is not insecure


def test_nobody_goes_past_it() -> None:
    paths = [path for package in (*OURS, "tests") for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(paths) > 100
    found = {
        f"{name} {offence}"
        for path in paths
        if not (name := path.relative_to(ROOT).as_posix()).startswith("kdfed/private/")
        and path != Path(__file__)
        for offence in past(path.read_text(encoding="utf-8"), ours=not name.startswith("tests/"))
    }
    assert found == set()


@pytest.mark.parametrize(
    "text",
    [
        "from flwr.supercore.run import Run",
        "import flwr.proto.control_pb2",
        "def f():\n    from flwr.serverapp.strategy import strategy_utils",
        "from flwr.simulation import run_simulation, simulationengine",
        "from flwr import common",
        "message.metadata.__dict__['_message_id'] = 'm'",
        "worker = ray._private.worker",
        "from ray._private import services",
        "os.environ['RAY_worker_niceness'] = '0'",
        "text = 'import ray; ray._private.worker'",
    ],
)
def test_whoever_goes_past_it_is_found(text: str) -> None:
    assert list(past(text, ours=True)) != []


@pytest.mark.parametrize(
    "text",
    [
        "from flwr.app import Message\nmessage.metadata.reply_to_message_id",
        "from flwr.simulation import run_simulation",
        "import ray\nray.init()",
        "from flwr import app",
        "os.environ['RAY_ADDRESS'] = 'local'",
    ],
)
def test_what_is_public_is_free(text: str) -> None:
    assert list(past(text, ours=True)) == []
