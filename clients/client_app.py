"""The ClientApp: one short handler a message type.

Messages carry every setting that their handler needs (see :mod:`kdfed.messages`), so a client reads no
experiment file and keeps no state that a restart would lose. :func:`clients.answering.answer` calls a
handler's ``work`` for each cohort of a message, and puts the reply together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from clients.answering import CohortWork, Contribution, answer
from clients.controls import Controls
from clients.local_models import PairedModels, ReceivedModel
from clients.logits import LogitsRound
from clients.names import gate
from clients.participants import Participants, participants_of
from clients.telling import tell
from kdfed.arrays import Spec, spec_of
from kdfed.closed_form import ClosedFormHead
from kdfed.closed_form.features import HeadOf, head_of
from kdfed.cohort import Trained, predict_stack, train_cohort
from kdfed.data import Examples
from kdfed.errors import ParticipantError, shown
from kdfed.local import LocalLoss, plain_loss
from kdfed.local.pairs import ModelPair
from kdfed.messages import (
    LOGITS,
    STATISTICS,
    Asked,
    Evaluate,
    Evaluation,
    QueryLogits,
    QueryStatistics,
    Train,
    TrainTeacher,
    Update,
)
from kdfed.models import State, build_model, load_state, state_of
from kdfed.privacy import add_laplace_noise
from kdfed.reading import cut_of, shape_read
from kdfed.seeding import derive, derive_many
from kdfed.settings import ModelSettings, TeacherSettings
from kdfed.setup import Setup
from kdfed.train import TrainResult, predict

app = ClientApp(mods=[tell, gate])


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say how many participants are here, who holds what, and which versions run."""
    reply = _participants(message, context).hello()
    return Message(reply.to_record(), reply_to=message)


@app.train("teacher")
def teacher(message: Message, context: Context) -> Message:
    """Train teachers; send their weights, or only their logits on the transfer set."""
    participants = _participants(message, context)

    def begin(asked: TrainTeacher) -> CohortWork:
        _check(asked, participants)
        settings, seed, setup = asked.settings, asked.seed, participants.setup
        own = participants.teacher(asked.model, _template(asked.model, participants))
        inputs = None if asked.inputs is None else participants.inputs(asked.inputs.numpy(), asked.model)
        model, loss = _template(asked.model, participants), plain_loss(setup.task)
        statistics_of = None
        if asked.head is not None:
            statistics_of = _statistics(asked, asked.head, asked.projection_seed, participants)

        def work(members: Sequence[int], sums: bool) -> Iterator[Contribution]:
            examples, sizes = participants.gather(members, asked.model)
            start: State | list[State] = asked.arrays or [
                _drawn(asked.model, participants, derive(seed, "init-teacher", 0, member))
                for member in members
            ]
            seeds = derive_many(seed, "teacher", 0, members)
            found = [] if statistics_of is None else [own for _, own in statistics_of(examples, sizes)]
            labels = torch.split(examples.labels.cpu(), sizes) if settings.label_counts.send else ()
            cohort = (
                train_cohort(model, start, examples, sizes, settings, loss, seeds, setup=setup)
                if own is None
                else [_untrained(model, own, examples, setup)]
            )
            for trained in cohort:
                arrays = trained.states
                if inputs is not None:
                    arrays = {LOGITS: predict_stack(model, arrays, inputs).to(torch.float16)}
                updates = [
                    _update(
                        result,
                        _label_counts(
                            labels[index], participants, settings, participants.noise(seed, members[index])
                        )
                        if settings.label_counts.send
                        else None,
                    )
                    for index, result in zip(trained.indices, trained.results, strict=True)
                ]
                some = [members[index] for index in trained.indices]
                if found:
                    sent = [found[index] for index in trained.indices]
                    arrays = arrays | {
                        STATISTICS + key: torch.stack([one[key] for one in sent]) for key in sent[0]
                    }
                yield Contribution(some, arrays, [update.metrics() for update in updates])

        return work

    def expected(asked: TrainTeacher) -> Spec:
        if asked.inputs is None:
            spec = spec_of(_template(asked.model, participants).state_dict())
        else:
            spec = {LOGITS: ((len(asked.inputs), participants.classes), "float16")}
        if asked.head is None:
            return spec
        more = _spec(asked.head, asked.model, participants)
        return {**spec, **{STATISTICS + key: value for key, value in more.items()}}

    return answer(message, TrainTeacher, begin, expected)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the received weights for one federated round."""
    participants = _participants(message, context)

    def begin(asked: Train) -> CohortWork:
        _check(asked, participants)
        local, setup = asked.local, participants.setup
        loss = local.loss(lambda: _received(asked, participants), setup.task)
        if not isinstance(loss, LocalLoss):
            raise ParticipantError(
                f"local mode {local.mode!r}: expected loss to return a kdfed.local.LocalLoss, got "
                f"{shown(loss)}"
            )
        models = _local_models(asked, participants)
        only = frozenset(asked.arrays) if asked.fixed else None
        controls = Controls(asked, participants.store) if asked.control else None

        def work(members: Sequence[int], sums: bool) -> Iterator[Contribution]:
            examples, sizes = participants.gather(members, asked.model)
            start = models.start(members)
            seeds = derive_many(asked.seed, "train", asked.server_round, members)
            sums = sums and isinstance(start, dict) and controls is None
            pulls = None if controls is None else controls.pulls(members)
            for trained in train_cohort(
                models.model,
                start,
                examples,
                sizes,
                local,
                loss,
                seeds,
                setup=setup,
                sums=sums,
                only=only,
                pulls=pulls,
            ):
                own = [members[index] for index in trained.indices]
                if controls is not None and pulls is not None:
                    controls.keep(own, trained, [pulls[index] for index in trained.indices])
                arrays = {} if trained.sums else models.upload(own, trained.states)
                metrics = [_update(result).metrics() for result in trained.results]
                yield Contribution(own, arrays, metrics, trained.sums)

        return work

    return answer(message, Train, begin, lambda asked: spec_of(asked.arrays))


@app.query("logits")
def logits(message: Message, context: Context) -> Message:
    """Distil the last consensus, train, and send logits on this round's public examples."""
    participants = _participants(message, context)

    def begin(asked: QueryLogits) -> CohortWork:
        _check(asked, participants)
        fresh = partial(_personal, asked.model, participants, asked.seed)
        logits_round = LogitsRound.of(asked, _template(asked.model, participants), fresh, participants)

        def work(members: Sequence[int], sums: bool) -> Iterator[Contribution]:
            for trained, sent in logits_round.run(members):
                own = [members[index] for index in trained.indices]
                metrics = [_update(result).metrics() for result in trained.results]
                yield Contribution(own, {LOGITS: sent}, metrics)

        return work

    def expected(asked: QueryLogits) -> Spec:
        return {LOGITS: ((asked.count, participants.classes), "float16")}

    return answer(message, QueryLogits, begin, expected)


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Send sums over the features of the participants' examples, for a head in closed form."""
    participants = _participants(message, context)

    def begin(asked: QueryStatistics) -> CohortWork:
        _check(asked, participants)
        statistics_of = _statistics(asked, asked.head, asked.projection_seed, participants)

        def work(members: Sequence[int], sums: bool) -> Iterator[Contribution]:
            examples, sizes = participants.gather(members, asked.model)
            for member, (held, found) in zip(members, statistics_of(examples, sizes), strict=True):
                arrays = {key: values.unsqueeze(0) for key, values in found.items()}
                yield Contribution([member], arrays, [Update(num_examples=held).metrics()])

        return work

    def expected(asked: QueryStatistics) -> Spec:
        return _spec(asked.head, asked.model, participants)

    return answer(message, QueryStatistics, begin, expected)


@app.evaluate()
def evaluate_received(message: Message, context: Context) -> Message:
    """Evaluate the received weights on the participants' own examples."""
    participants = _participants(message, context)
    task = participants.setup.task

    def begin(asked: Evaluate) -> CohortWork:
        _check(asked, participants)
        received = _received(asked, participants)

        def work(members: Sequence[int], sums: bool) -> Iterator[Contribution]:
            examples, sizes = participants.gather(members, asked.model)
            outputs = predict(received, examples.inputs)  # one model for all: nothing to fold
            parts = zip(torch.split(outputs, sizes), torch.split(examples.labels.cpu(), sizes), strict=True)
            found = [
                Evaluation(
                    num_examples=len(labels), loss=task.loss(own, labels), accuracy=task.score(own, labels)
                )
                for own, labels in parts
            ]
            yield Contribution(members, {}, [evaluation.metrics() for evaluation in found])

        return work

    return answer(message, Evaluate, begin, lambda asked: {})


# ----------------------------------------------------------------------------- what is sent


def _update(result: TrainResult, label_counts: list[float] | None = None) -> Update:
    return Update(
        num_examples=result.examples,
        train_loss=result.loss,
        local_steps=result.steps,
        label_counts=label_counts,
    )


def _untrained(model: nn.Module, state: State, examples: Examples, setup: Setup) -> Trained:
    """Return a teacher that there was already as a training leaves one, in no step."""
    load_state(model, state)
    loss = setup.task.loss(predict(model, examples.inputs), examples.labels.cpu())
    stack = {key: value.unsqueeze(0).to(setup.device) for key, value in state.items()}
    return Trained(stack, [0], [TrainResult(loss, 0, len(examples))])


def _label_counts(
    labels: torch.Tensor, participants: Participants, settings: TeacherSettings, noise: np.random.Generator
) -> list[float]:
    counts = torch.bincount(labels, minlength=participants.classes).numpy()
    if settings.label_counts.epsilon is not None:
        counts = add_laplace_noise(counts, settings.label_counts.epsilon, noise)
    return [float(count) for count in counts]


# ----------------------------------------------------------------------------- participants and models


def _participants(message: Message, context: Context) -> Participants:
    participants = participants_of(message.content, context)
    participants.setup.settle()
    return participants


def _head(model: ModelSettings, participants: Participants) -> HeadOf:
    """Return where the model that a message names has its head."""
    shape = shape_read(model, participants.input_shape)
    return head_of(copy.deepcopy(_template(model, participants)), shape)


def _spec(head: ClosedFormHead, model: ModelSettings, participants: Participants) -> Spec:
    """Return what one participant's statistics look like."""
    return head.spec(_head(model, participants).dims, participants.classes, participants.setup.task)


def _statistics(
    asked: Asked, head: ClosedFormHead, projection_seed: int, participants: Participants
) -> Callable[[Examples, Sequence[int]], Iterator[tuple[int, State]]]:
    """Return what makes, of some participants' examples, the number and the sums of each, one by one.

    The features are those of the received weights, whose own head does not matter.
    """
    place = _head(asked.model, participants)
    participants.check_statistics(_spec(head, asked.model, participants))
    model = copy.deepcopy(_template(asked.model, participants))
    load_state(model, asked.arrays | {key: model.state_dict()[key] for key in place.keys})
    classes, task = participants.classes, participants.setup.task

    def statistics_of(examples: Examples, sizes: Sequence[int]) -> Iterator[tuple[int, State]]:
        sizes = list(sizes)
        parts = zip(torch.split(examples.inputs, sizes), torch.split(examples.labels, sizes), strict=True)
        for inputs, labels in parts:
            features = place.features(model, inputs)
            found = head.statistics(features, labels.cpu(), classes, task, projection_seed)
            yield len(labels), {key: torch.from_numpy(values) for key, values in found.items()}

    return statistics_of


def _received(asked: Train | Evaluate, participants: Participants) -> nn.Module:
    """Return the model that a message names, with the received weights."""
    model = copy.deepcopy(_template(asked.model, participants))
    load_state(model, asked.arrays | asked.fixed)
    return model


def _local_models(asked: Train, participants: Participants) -> ReceivedModel | PairedModels:
    """Return what a round trains: the received model, alone or beside each participant's personal one."""
    personal = asked.local.personal_model(asked.model)
    if personal is None:
        return ReceivedModel(_template(asked.model, participants), asked.arrays, asked.fixed)
    return PairedModels(
        _pair_template(asked.model, personal, participants),
        asked.arrays,
        partial(_personal, personal, participants, asked.seed),
        participants.store,
        asked.server_round,
    )


def _drawn(model: ModelSettings, participants: Participants, seed: int) -> State:
    """Return freshly drawn weights."""
    return state_of(build_model(model, participants.input_shape, participants.classes, seed))


def _personal(model: ModelSettings, participants: Participants, seed: int, member: int) -> State:
    """Return the first weights of a participant's own model."""
    return _drawn(model, participants, derive(seed, "init-personal", 0, member))


def _check(asked: Asked, participants: Participants) -> None:
    """Refuse a message whose weights are another model's, or whose backbone has other weights here.

    With another backbone the same tail would compute something else.
    """
    cut = cut_of(asked.model)
    if cut is not None and asked.backbone_sha256 not in ("", cut.weights_sha256):
        raise ParticipantError(
            f"expected the weights of {shown(asked.model.backbone)} that the server has, SHA-256 "
            f"{asked.backbone_sha256[:12]}, got others here, {cut.weights_sha256[:12]}: install the same "
            "version, or give everybody the same file (model.weights)"
        )
    participants.check(asked, _template(asked.model, participants))


def _template(model: ModelSettings, participants: Participants) -> nn.Module:
    """Return the architecture that a message names; its weights mean nothing, and it is built once."""
    shape, classes = participants.input_shape, participants.classes
    return _built(model.model_dump_json(), shape, classes, participants.setup.device)


def _pair_template(
    federated: ModelSettings, personal: ModelSettings, participants: Participants
) -> ModelPair:
    """Return a federated and a personal architecture side by side; their weights mean nothing."""
    names = federated.model_dump_json(), personal.model_dump_json()
    shape, classes = participants.input_shape, participants.classes
    return _built_pair(*names, shape, classes, participants.setup.device)


@lru_cache(maxsize=16)
def _built(name: str, input_shape: tuple[int, ...], classes: int, device: torch.device) -> nn.Module:
    settings = ModelSettings.model_validate_json(name)
    return build_model(settings, input_shape, classes, seed=0).to(device)


@lru_cache(maxsize=16)
def _built_pair(
    federated: str, personal: str, input_shape: tuple[int, ...], classes: int, device: torch.device
) -> ModelPair:
    settings = (ModelSettings.model_validate_json(name) for name in (federated, personal))
    return ModelPair(*(build_model(one, input_shape, classes, seed=0) for one in settings)).to(device)
