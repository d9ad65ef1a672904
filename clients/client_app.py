"""The ClientApp: one short handler a message type.

Messages carry every setting that their handler needs (see :mod:`kdfed.wire`), so a client reads no
experiment file and keeps no state that a restart would lose.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from pydantic import TypeAdapter
from torch import nn

from clients.envelope import Task, Work, answer
from clients.participant import SimulatedParticipants, participants_of
from kdfed import wire
from kdfed.config import LocalSettings, ModelSettings, TeacherSettings
from kdfed.ensemble import add_laplace_noise
from kdfed.models import build_model, load_state, state_of
from kdfed.seeding import derive, numpy_generator
from kdfed.train import evaluate, predict, train_local, train_teacher
from kdfed.wire import versions

app = ClientApp()

_LOCAL: TypeAdapter[LocalSettings] = TypeAdapter(LocalSettings)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say which participants are here, how many examples they hold, and which versions run."""
    participants = _participants(message, context)
    content = RecordDict(
        {
            wire.METRICS: MetricRecord({wire.NUM_EXAMPLES: participants.num_examples()}),
            wire.CONFIG: ConfigRecord({"versions": json.dumps(versions())}),
        }
    )
    return Message(content, reply_to=message)


@app.train("teacher")
def teacher(message: Message, context: Context) -> Message:
    """Train a teacher; send its weights, or only its logits on the transfer set."""
    participants = _participants(message, context)

    def work(task: Task) -> Work:
        settings = TeacherSettings.model_validate_json(str(task.config["teachers"]))
        seed = int(task.config["seed"])
        model = _model(task, participants, derive(seed, "init-teacher", participant=task.participant))
        examples = participants.examples(task.participant)
        result = train_teacher(model, examples, settings, derive(seed, "teacher", 0, task.participant))
        metrics: dict[str, int | float | list[float]] = {
            wire.NUM_EXAMPLES: result.examples,
            wire.TRAIN_LOSS: result.loss,
            wire.LOCAL_STEPS: result.steps,
        }
        if settings.label_counts.send:
            counts = torch.bincount(examples.labels.cpu(), minlength=participants.data.classes).numpy()
            if settings.label_counts.epsilon is not None:
                # Seeded, so that a simulation repeats; a device must draw noise that nobody can.
                noise = numpy_generator(seed, "label-counts", 0, task.participant)
                counts = add_laplace_noise(counts, settings.label_counts.epsilon, noise)
            metrics[wire.LABEL_COUNTS] = [float(count) for count in counts]
        if settings.upload == "weights":
            return Work(state_of(model), metrics)
        inputs = participants.data.normalisation.apply(task.transfer[wire.INPUTS].numpy())
        return Work({wire.LOGITS: predict(model, inputs).to(torch.float16)}, metrics)

    def expected(task: Task) -> wire.Spec:
        settings = TeacherSettings.model_validate_json(str(task.config["teachers"]))
        if settings.upload == "logits":
            return {wire.LOGITS: ((len(task.transfer[wire.INPUTS]), participants.data.classes), "float16")}
        data = participants.data
        template = _template(str(task.config["model"]), data.input_shape, data.classes)
        return wire.spec_of(template.state_dict())

    return answer(message, work, expected)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the received weights for one federated round."""
    participants = _participants(message, context)

    def work(task: Task) -> Work:
        settings = _LOCAL.validate_json(str(task.config["local"]))
        seed, server_round = int(task.config["seed"]), int(task.config["server-round"])
        model = _model(task, participants, 0)
        examples = participants.examples(task.participant)
        result = train_local(model, examples, settings, derive(seed, "train", server_round, task.participant))
        return Work(
            state_of(model),
            {
                wire.NUM_EXAMPLES: result.examples,
                wire.TRAIN_LOSS: result.loss,
                wire.LOCAL_STEPS: result.steps,
            },
        )

    return answer(message, work, lambda task: wire.spec_of(task.arrays))


@app.evaluate()
def evaluate_received(message: Message, context: Context) -> Message:
    """Evaluate the received weights on the participants' own examples."""
    participants = _participants(message, context)

    def work(task: Task) -> Work:
        examples = participants.examples(task.participant)
        accuracy, loss = evaluate(_model(task, participants, 0), examples)
        return Work(
            {}, {wire.NUM_EXAMPLES: len(examples), wire.EVAL_LOSS: loss, wire.EVAL_ACCURACY: accuracy}
        )

    return answer(message, work, lambda task: {})


def _participants(message: Message, context: Context) -> SimulatedParticipants:
    simulation = message.content.config_records.get(wire.SIMULATION)
    participants = participants_of(simulation, context)
    if torch.get_num_threads() != participants.threads:
        torch.set_num_threads(participants.threads)
    return participants


def _model(task: Task, participants: SimulatedParticipants, seed: int) -> nn.Module:
    """Build the model that a task names: with the received weights, else with seeded ones."""
    data, name = participants.data, str(task.config["model"])
    if not task.arrays:
        return _build(name, data.input_shape, data.classes, seed).to(participants.device)
    model = copy.deepcopy(_template(name, data.input_shape, data.classes))
    load_state(model, task.arrays)
    return model.to(participants.device)


def _build(name: str, input_shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    return build_model(ModelSettings.model_validate_json(name), input_shape, classes, seed)


@lru_cache(maxsize=16)
def _template(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a model to copy, which is quicker than to build one; its weights mean nothing."""
    return _build(name, input_shape, classes, seed=0)
