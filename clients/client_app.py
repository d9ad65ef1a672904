"""The ClientApp: one short handler a message type.

Messages carry every setting that their handler needs (see :mod:`kdfed.wire`), so a client reads no
experiment file and keeps no state that a restart would lose.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from clients.envelope import CohortWork, Metrics, Task, Work, answer
from clients.exchange import LogitsExchange
from clients.names import gate
from clients.participant import SimulatedParticipants, participants_of, store_of
from clients.store import Store
from clients.telling import tell
from clients.trainees import PairedModels, ReceivedModel
from kdfed import wire
from kdfed.cohort import predict_stack, train_cohort
from kdfed.errors import ParticipantError, shown
from kdfed.local import LOCAL_MODES, LocalLoss, plain_loss
from kdfed.local.pairs import ModelPair
from kdfed.models import State, build_model, load_state, state_of
from kdfed.privacy import add_laplace_noise
from kdfed.seeding import derive, derive_many, numpy_generator
from kdfed.settings import ModelSettings, TeacherSettings
from kdfed.task import Task as LearningTask
from kdfed.train import TrainResult, predict
from kdfed.wire import versions

app = ClientApp(mods=[tell, gate])


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say how many participants are here, who holds what, and which versions run."""
    participants = _participants(message, context)
    content = RecordDict(
        {
            wire.METRICS: MetricRecord(
                {
                    wire.PARTICIPANTS: len(participants.partition),
                    wire.NUM_EXAMPLES: len(participants.partition.examples),
                    wire.HELD: participants.partition.sizes.tolist(),
                }
            ),
            wire.CONFIG: ConfigRecord({"versions": json.dumps(versions()), wire.DIGEST: participants.digest}),
        }
    )
    return Message(content, reply_to=message)


@app.train("teacher")
def teacher(message: Message, context: Context) -> Message:
    """Train teachers; send their weights, or only their logits on the transfer set."""
    participants = _participants(message, context)
    data = participants.data

    def begin(task: Task) -> CohortWork:
        settings, name = _teachers(task), str(task.config["model"])
        seed = int(task.config["seed"])
        inputs = None
        if settings.upload == "logits":
            inputs = data.normalisation.apply(task.transfer[wire.INPUTS].numpy())
        model = _template(name, data.input_shape, data.classes, participants.setup.device)
        loss = plain_loss(data.task)

        def work(members: Sequence[int]) -> Iterator[Work]:
            examples, sizes = participants.gather(members)
            start: State | list[State] = task.arrays or [
                state_of(
                    _build(name, data.input_shape, data.classes, derive(seed, "init-teacher", 0, member))
                )
                for member in members
            ]
            seeds = derive_many(seed, "teacher", 0, members)
            labels = torch.split(examples.labels.cpu(), sizes) if settings.label_counts.send else ()
            for trained in train_cohort(
                model, start, examples, sizes, settings, loss, seeds, setup=participants.setup
            ):
                own, arrays = [members[place] for place in trained.indices], trained.states
                metrics = [_training(result) for result in trained.results]
                if settings.label_counts.send:
                    for place, told in zip(trained.indices, metrics, strict=True):
                        told[wire.LABEL_COUNTS] = _label_counts(
                            labels[place], data.classes, settings, seed, members[place]
                        )
                if inputs is not None:
                    arrays = {wire.LOGITS: predict_stack(model, arrays, inputs).to(torch.float16)}
                yield Work(own, arrays, metrics)

        return work

    def expected(task: Task) -> wire.Spec:
        if _teachers(task).upload == "logits":
            return {wire.LOGITS: ((len(task.transfer[wire.INPUTS]), data.classes), "float16")}
        template = _template(
            str(task.config["model"]), data.input_shape, data.classes, participants.setup.device
        )
        return wire.spec_of(template.state_dict())

    return answer(message, begin, expected)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the received weights for one federated round."""
    participants = _participants(message, context)

    def begin(task: Task) -> CohortWork:
        settings = LOCAL_MODES.parse(str(task.config["local"]))
        seed, server_round = int(task.config["seed"]), int(task.config["server-round"])
        loss = settings.loss(lambda: _received(task, participants), participants.data.task)
        if not isinstance(loss, LocalLoss):
            raise ParticipantError(
                f"local mode {settings.mode!r}: expected loss to return a kdfed.local.LocalLoss, got "
                f"{shown(loss)}"
            )
        trainees: ReceivedModel | PairedModels
        federated = ModelSettings.model_validate_json(str(task.config["model"]))
        personal = settings.personal_model(federated)
        if personal is not None:
            store = store_of(_simulation(message), context)
            trainees = _pairs(task, federated, personal, participants, store)
        else:
            data, name = participants.data, str(task.config["model"])
            model = _template(name, data.input_shape, data.classes, participants.setup.device)
            trainees = ReceivedModel(model, task.arrays)

        def work(members: Sequence[int]) -> Iterator[Work]:
            examples, sizes = participants.gather(members)
            start = trainees.start(members)
            seeds = derive_many(seed, "train", server_round, members)
            for trained in train_cohort(
                trainees.model,
                start,
                examples,
                sizes,
                settings,
                loss,
                seeds,
                setup=participants.setup,
                sums=task.sums,
            ):
                own = [members[place] for place in trained.indices]
                arrays = {} if trained.sums else trainees.upload(own, trained.states)
                yield Work(own, arrays, [_training(result) for result in trained.results], trained.sums)

        return work

    return answer(message, begin, lambda task: wire.spec_of(task.arrays))


@app.query("logits")
def logits(message: Message, context: Context) -> Message:
    """Digest the last consensus, train, and send logits on this round's public examples."""
    participants = _participants(message, context)
    data, store = participants.data, store_of(_simulation(message), context)

    def begin(task: Task) -> CohortWork:
        name, seed = str(task.config["model"]), int(task.config["seed"])
        model = _template(name, data.input_shape, data.classes, participants.setup.device)

        fresh = partial(_personal, name, data.input_shape, data.classes, seed)
        exchange = LogitsExchange.of(task, model, fresh, participants, store)

        def work(members: Sequence[int]) -> Iterator[Work]:
            for trained, sent in exchange.run(members):
                own = [members[place] for place in trained.indices]
                yield Work(own, {wire.LOGITS: sent}, [_training(result) for result in trained.results])

        return work

    def expected(task: Task) -> wire.Spec:
        return {wire.LOGITS: ((int(task.config["count"]), data.classes), "float16")}

    return answer(message, begin, expected)


@app.evaluate()
def evaluate_received(message: Message, context: Context) -> Message:
    """Evaluate the received weights on the participants' own examples."""
    participants = _participants(message, context)

    def begin(task: Task) -> CohortWork:
        received = _received(task, participants)

        def work(members: Sequence[int]) -> Iterator[Work]:
            examples, sizes = participants.gather(members)
            logits = predict(received, examples.inputs)  # one model for all: nothing to fold
            parts = zip(torch.split(logits, sizes), torch.split(examples.labels.cpu(), sizes), strict=True)
            yield Work(members, {}, [_evaluation(participants.data.task, *part) for part in parts])

        return work

    return answer(message, begin, lambda task: {})


def _training(result: TrainResult) -> Metrics:
    return {
        wire.NUM_EXAMPLES: result.examples,
        wire.TRAIN_LOSS: result.loss,
        wire.LOCAL_STEPS: result.steps,
    }


def _evaluation(task: LearningTask, outputs: torch.Tensor, labels: torch.Tensor) -> Metrics:
    return {
        wire.NUM_EXAMPLES: len(labels),
        wire.EVAL_LOSS: task.loss(outputs, labels),
        wire.EVAL_ACCURACY: task.score(outputs, labels),
    }


def _label_counts(
    labels: torch.Tensor, classes: int, settings: TeacherSettings, seed: int, participant: int
) -> list[float]:
    counts = torch.bincount(labels, minlength=classes).numpy()
    if settings.label_counts.epsilon is not None:
        # Seeded, so that a simulation repeats; a device must draw noise that nobody can.
        noise = numpy_generator(seed, "label-counts", 0, participant)
        counts = add_laplace_noise(counts, settings.label_counts.epsilon, noise)
    return [float(count) for count in counts]


def _teachers(task: Task) -> TeacherSettings:
    return TeacherSettings.model_validate_json(str(task.config["teachers"]))


def _participants(message: Message, context: Context) -> SimulatedParticipants:
    participants = participants_of(_simulation(message), context)
    participants.setup.set_threads()
    return participants


def _simulation(message: Message) -> ConfigRecord | None:
    return message.content.config_records.get(wire.SIMULATION)


def _received(task: Task, participants: SimulatedParticipants) -> nn.Module:
    """Return the model that a task names, with the received weights."""
    data = participants.data
    template = _template(str(task.config["model"]), data.input_shape, data.classes, participants.setup.device)
    model = copy.deepcopy(template)
    load_state(model, task.arrays)
    return model


def _pairs(
    task: Task,
    federated: ModelSettings,
    personal: ModelSettings,
    participants: SimulatedParticipants,
    store: Store,
) -> PairedModels:
    """Return the received model beside the personal ones of a simulation's participants."""
    data, seed = participants.data, int(task.config["seed"])
    name, own = federated.model_dump_json(), personal.model_dump_json()

    return PairedModels(
        _pair_template(name, own, data.input_shape, data.classes, participants.setup.device),
        task.arrays,
        partial(_personal, own, data.input_shape, data.classes, seed),
        store,
        int(task.config["server-round"]),
    )


def _build(name: str, input_shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    return build_model(ModelSettings.model_validate_json(name), input_shape, classes, seed)


def _personal(name: str, input_shape: tuple[int, ...], classes: int, seed: int, member: int) -> State:
    """Return the first weights of a participant's own model."""
    return state_of(_build(name, input_shape, classes, derive(seed, "init-personal", 0, member)))


@lru_cache(maxsize=16)
def _template(name: str, input_shape: tuple[int, ...], classes: int, device: torch.device) -> nn.Module:
    """Return the architecture that a message names; its weights mean nothing."""
    return _build(name, input_shape, classes, seed=0).to(device)


@lru_cache(maxsize=16)
def _pair_template(
    name: str, personal: str, input_shape: tuple[int, ...], classes: int, device: torch.device
) -> ModelPair:
    """Return a federated and a personal architecture side by side; their weights mean nothing."""
    return ModelPair(*(_build(half, input_shape, classes, seed=0) for half in (name, personal))).to(device)
