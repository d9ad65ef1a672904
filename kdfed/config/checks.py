"""How the keys of one arm go together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import product

from kdfed.config.experiment import Arm, sampled_count
from kdfed.config.mistakes import related
from kdfed.config.sections import (
    ConsolidationBase,
    DataSettings,
    DistillationSettings,
    FedDFServer,
    GeneratorSettings,
    KDLocal,
    LogitsServer,
    ModelSettings,
    MutualConsolidation,
    MutualLocal,
    NormaliseSettings,
    OptimiserSettings,
    PartitionedConsolidation,
    TunedConsolidation,
)
from kdfed.errors import Mistake, shown

_LOGITS_CHANGED = "uploaded logits belong to the images as they are"
_OTHER_INPUTS = "uploaded logits belong to the public transfer set; set teachers.upload: weights"
_NO_LABELS = "only the public transfer set has labels; set labels: false"
_PEERS_TRAIN = "the teachers are trained too, which needs their weights"


def _refused(method: str, transfer: str, upload: str, labels: bool, augmentation: bool) -> str | None:
    if transfer != "public" and labels:
        return _NO_LABELS
    if upload == "weights":
        return None
    if transfer != "public":
        return _OTHER_INPUTS
    if method == "mutual":
        return _PEERS_TRAIN
    return _LOGITS_CHANGED if augmentation else None


# What consolidation can be asked for: (method, transfer, upload, labels, augmentation) -> None when it is
# valid, else why not. A test walks every entry.
COMBINATIONS: dict[tuple[str, str, str, bool, bool], str | None] = {
    choice: _refused(*choice)
    for choice in product(
        ("vanilla", "tuned", "mutual", "partitioned"),
        ("public", "noise", "proxy", "generated"),
        ("weights", "logits"),
        (False, True),
        (False, True),
    )
}


# What a regression can be asked for, by key; other values need classes. A test walks every entry.
REGRESSION: dict[str, tuple[str, ...]] = {
    "local.mode": ("plain", "proximal", "kd", "mutual"),
    "method": ("vanilla", "tuned", "mutual"),
    "ensemble": ("mean-logits",),
    "transfer": ("public", "own", "teacher", "union", "proxy", "noise"),
    "server.strategy": (
        "fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "feddf", "fedmedian",
        "fedtrimmedavg", "krum",
    ),
}  # fmt: skip
_NO_CLASSES = {
    "ntd": "it distils the classes that are not the label, and a number has none",
    "partitioned": "it asks which model is surest, and a number says nothing of how sure a model is",
    "generated": "its generator asks for examples of every class",
}
_CLASSES_ONLY = ("mnist5k", "digits", "torchvision", "folder", "synthetic")
_NUMBERS_ONLY = ("diabetes",)


def task_problem(data: DataSettings) -> str | None:
    """Say what is wrong with a task whose labels the source does not have; None when all is well."""
    if data.task == "regression" and data.source.partition(":")[0] in _CLASSES_ONLY:
        return f"expected 'classification' with source {shown(data.source)}, whose labels are classes; set it"
    if data.task == "classification" and data.source in _NUMBERS_ONLY:
        return f"expected 'regression' with source {shown(data.source)}, whose labels are numbers; set it"
    return None


def regression_problem(key: str, value: str) -> str | None:
    """Say what is wrong with a value of a key of :data:`REGRESSION`; None when a regression has it."""
    allowed = REGRESSION[key]
    if value in allowed:
        return None
    why = _NO_CLASSES.get(value, "it needs classes")
    return f"expected {' or '.join(allowed)} with data.task 'regression', got {value!r}: {why}; set it"


def temperature_problem(key: str, *temperatures: float) -> str | None:
    """Say what is wrong with temperatures of a regression, which has the temperature 1 only."""
    if temperatures == (1.0,):
        return None
    wanted, got = "1.0", f"{temperatures[0]:g}"
    if key == "temperatures":
        wanted, got = "[1.0]", str(list(temperatures))
    return f"expected {wanted} with data.task 'regression', whose outputs have no softmax, got {got}; set it"


def momentum_problem(settings: OptimiserSettings) -> str | None:
    """Say what is wrong with a momentum that the optimiser does not have; None when all is well."""
    if settings.optimizer == "sgd" or settings.momentum == 0:
        return None
    return (
        f"expected 0 with optimizer {settings.optimizer!r}, which has no such option, got "
        f"{settings.momentum}; use optimizer: sgd or remove it"
    )


def data_problems(data: DataSettings) -> Iterator[tuple[str, ...]]:
    """Yield what does not go together in a data section: the key, the message, keys that it depends on."""
    shares = (data.splits.test, data.splits.validation, data.splits.transfer)
    total = sum(share for share in shares if not isinstance(share, str))
    if total >= 1:
        yield "splits", f"expected shares that leave examples for participants, got {total:g} of them"
    if data.columns is not None and not data.source.startswith(("parquet:", "hf:")):
        yield "columns", f"goes with parquet: and hf: sources, got {shown(data.source)}; remove it", "source"
    problem = task_problem(data)
    if problem is not None:
        yield "task", problem, "source"
    if data.task == "regression" and data.classes is not None:
        yield "classes", "has no effect with data.task 'regression'; remove it", "task"
    if isinstance(data.classes, tuple) and len(set(data.classes)) != len(data.classes):
        yield "classes", "expected distinct names; remove the repeated ones"
    normalise = data.normalise
    if isinstance(normalise, NormaliseSettings) and len(normalise.mean) != len(normalise.std):
        found = f"{len(normalise.mean)} mean and {len(normalise.std)} std"
        yield "normalise", f"expected as many std as mean, got {found}"


def proxy_problems(proxy: DataSettings, data: DataSettings) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the data section of a proxy, beside the task's: the key and the message."""
    if proxy.source == data.source:
        got = shown(proxy.source)
        message = f"expected another source than that of data, got {got}: participants hold its images"
        yield "proxy.source", message
    for key, message, *_ in data_problems(proxy):
        yield f"proxy.{key}", message
    if proxy.shape is not None:
        yield "proxy.shape", "has no effect: a proxy's images are resized to the task's; remove it"


def generator_problem(settings: GeneratorSettings) -> str | None:
    """Say what is wrong with the weights of a generator's loss; None when all is well."""
    if settings.one_hot_weight or settings.entropy_weight or settings.activation_weight:
        return None
    return "expected one weight above 0, got 0 for all terms: there is nothing to train it on"


def cross_checks(arm: Arm, known: Collection[str] = ()) -> list[Mistake]:
    """Return the mistakes that lie in how keys of one arm go together.

    Parameters
    ----------
    arm
        An arm whose single keys are valid. Sections that its start does not use are not checked.
    known
        Keys that were wrong, and are left out of the arm: what depends on them is not checked.
    """
    from kdfed.models import check_model  # imports torch: not needed to print help

    mistakes: list[Mistake] = []

    def wrong(key: str, message: str, *others: str) -> None:
        if not any(related(read, bad) for read in (key, *others) for bad in known):
            mistakes.append(Mistake(key, message))

    models: list[tuple[str, ModelSettings]] = [("model", arm.model)]
    trained: list[tuple[str, OptimiserSettings]] = [("local", arm.local)]
    if isinstance(arm.local, MutualLocal) and arm.local.model is not None:
        models.append(("local.model", arm.local.model))
    if arm.start in ("consolidated", "averaged"):
        trained.append(("teachers", arm.teachers))
        models += [("teachers.model", model) for model in several(arm.teachers.model)]
    if arm.start == "consolidated":
        trained.append(("consolidation", arm.consolidation))
    if isinstance(arm.server, FedDFServer):
        trained.append(("server.distillation", arm.server.distillation))
    if isinstance(arm.server, LogitsServer):
        trained += [("server.digest", arm.server.digest), ("server.distillation", arm.server.distillation)]
        models += [("server.models", model) for model in several(arm.server.models)]
        if arm.local.mode != "plain":
            wrong(
                "local.mode",
                f"expected 'plain' with strategy {arm.server.strategy!r}, whose participants receive no "
                f"model, got {arm.local.mode!r}",
                "server.strategy",
            )
    for section, model in models:
        problem = check_model(model)
        if problem is not None:
            wrong(section, problem)
    for section, settings in trained:
        problem = momentum_problem(settings)
        if problem is not None:
            wrong(f"{section}.momentum", problem, f"{section}.optimizer")
    if arm.server.strategy == "fedprox" and arm.local.mode != "proximal":
        wrong(
            "local.mode",
            f"expected 'proximal' with strategy 'fedprox', got {arm.local.mode!r}",
            "server.strategy",
        )
    for key, message, *others in data_problems(arm.data):
        wrong(f"data.{key}", message, *(f"data.{other}" for other in others))
    if arm.data.task == "regression":
        for key, message in _check_regression(arm):
            wrong(key, message, "data.task", key.rpartition(".")[0])
    participants = arm.partition.participants
    sampled = arm.server.sampled
    if isinstance(sampled, int) and sampled > participants:
        wrong(
            "server.sampled",
            f"expected at most the {participants} participants, got {sampled}",
            "partition.participants",
        )
    drawn, counted = sampled_count(arm), ("server.sampled", "partition.participants")
    if arm.server.minimum > drawn:
        wrong(
            "server.minimum",
            f"expected at most the {drawn} participants sampled, got {arm.server.minimum}",
            *counted,
        )
    server = arm.server
    if server.strategy == "krum" and server.num_malicious_nodes >= drawn - 2:
        wrong(
            "server.num-malicious-nodes",
            "Krum compares with the nearest sampled - num-malicious-nodes - 2, and expected at least 1, "
            f"got {drawn} - {server.num_malicious_nodes} - 2; sample more participants or lower it",
            *counted,
        )
    if isinstance(server, FedDFServer):
        distillation = server.distillation
        for key, message, other in _check_distillation(distillation, (distillation.weight,), False):
            wrong(f"server.distillation.{key}", message, f"server.distillation.{other}")
    if arm.start in ("consolidated", "averaged"):
        mistakes += _check_teachers(arm, known)
    return mistakes


def several(models: ModelSettings | tuple[ModelSettings, ...] | None) -> tuple[ModelSettings, ...]:
    """Return the architectures that a key names: one, a list, or none."""
    return () if models is None else models if isinstance(models, tuple) else (models,)


def _check_regression(arm: Arm) -> list[tuple[str, str]]:
    """Return what a regression cannot be asked for: (key, message)."""
    found = [
        ("local.mode", regression_problem("local.mode", arm.local.mode)),
        ("server.strategy", regression_problem("server.strategy", arm.server.strategy)),
    ]
    if isinstance(arm.local, KDLocal):
        found.append(("local.temperature", temperature_problem("temperature", arm.local.temperature)))
    distillations: list[tuple[str, DistillationSettings]] = []
    if arm.start == "consolidated":
        method = arm.consolidation.method
        found.append(("consolidation.method", regression_problem("method", method)))
        transfer = regression_problem("transfer", arm.consolidation.transfer)
        found.append(("consolidation.transfer", transfer))
        if method in REGRESSION["method"]:
            distillations.append(("consolidation", arm.consolidation))
    if isinstance(arm.server, FedDFServer):
        distillations.append(("server.distillation", arm.server.distillation))
    for section, settings in distillations:
        values = dict(settings)
        if "ensemble" in values:
            problem = regression_problem("ensemble", values["ensemble"])
            found.append((f"{section}.ensemble", problem))
        if "temperatures" in values:
            problem = temperature_problem("temperatures", *values["temperatures"])
            found.append((f"{section}.temperatures", problem))
        if "temperature" in values:
            problem = temperature_problem("temperature", values["temperature"])
            found.append((f"{section}.temperature", problem))
    return [(key, message) for key, message in found if message is not None]


def _check_teachers(arm: Arm, known: Collection[str]) -> list[Mistake]:
    mistakes: list[Mistake] = []

    def wrong(key: str, message: str, *others: str) -> None:
        if not any(related(read, bad) for read in (key, *others) for bad in known):
            mistakes.append(Mistake(key, message))

    teachers, consolidation = arm.teachers, arm.consolidation
    if isinstance(teachers.count, int) and teachers.count > arm.partition.participants:
        wrong(
            "teachers.count",
            f"expected at most the {arm.partition.participants} participants, got {teachers.count}",
            "partition.participants",
        )
    if teachers.label_counts.epsilon is not None and not teachers.label_counts.send:
        wrong(
            "teachers.label-counts.epsilon",
            "has no effect unless send is true; set it or remove epsilon",
            "teachers.label-counts.send",
        )
    ensemble = getattr(consolidation, "ensemble", None) if arm.start == "consolidated" else None
    if teachers.label_counts.send and ensemble != "label-counts":
        got = f"method {consolidation.method!r}" if ensemble is None else f"ensemble {ensemble!r}"
        wrong(
            "teachers.label-counts.send",
            "tells what participants hold, and only start: consolidated with the ensemble 'label-counts' "
            f"uses it, got start: {arm.start} with {got}; set it to false",
            "consolidation.ensemble",
            "consolidation.method",
        )
    averaged = arm.start == "averaged" or consolidation.init == "averaged"
    where = "start" if arm.start == "averaged" else "consolidation.init"
    if averaged and teachers.upload != "weights":
        wrong(
            where, f"'averaged' needs teachers.upload 'weights', got {teachers.upload!r}", "teachers.upload"
        )
    if averaged and teachers.model is not None and teachers.model != arm.model:
        wrong(
            where,
            "'averaged' needs teachers of the federated model's architecture; remove teachers.model",
            "model",
            "teachers.model",
        )
    if arm.start == "averaged":
        return mistakes
    choice = (
        consolidation.method,
        consolidation.transfer,
        teachers.upload,
        consolidation.labels,
        bool(consolidation.augmentation),
    )
    refused = COMBINATIONS.get(choice, "kdfed.config.checks.COMBINATIONS has no row for it")
    if refused is not None:
        wrong(
            "consolidation",
            f"method {choice[0]!r} with transfer {choice[1]!r}, upload {choice[2]!r}, labels {choice[3]} and "
            f"augmentation {list(consolidation.augmentation)} is not possible: {refused}",
            "teachers.upload",
        )
    for key, message in _check_transfer(consolidation, arm.data):
        wrong(f"consolidation.{key}", message, "consolidation.transfer")
    values = dict(consolidation)
    weights = values.get("weights", (values["weight"],) if "weight" in values else ())
    # Partitioned KD asks the labels who is surest of them, whatever the weight.
    labels_serve = isinstance(consolidation, MutualConsolidation | PartitionedConsolidation)
    for key, message, *others in _check_distillation(consolidation, weights, labels_serve):
        wrong(f"consolidation.{key}", message, *(f"consolidation.{other}" for other in others))
    if isinstance(consolidation, TunedConsolidation):
        if consolidation.trials is not None and consolidation.sampler == "grid":
            wrong(
                "consolidation.trials",
                "has no effect with sampler 'grid', which tries every pair; name another or remove it",
                "consolidation.sampler",
            )
        if consolidation.trials is None and consolidation.sampler != "grid":
            wrong(
                "consolidation.trials",
                f"expected how many pairs {consolidation.sampler!r} tries, got nothing",
                "consolidation.sampler",
            )
    if ensemble == "label-counts" and not teachers.label_counts.send:
        wrong(
            "consolidation.ensemble",
            "'label-counts' needs teachers.label-counts.send: true",
            "teachers.label-counts.send",
        )
    if ensemble == "validated" and teachers.upload == "logits":
        wrong(
            "consolidation.ensemble",
            "'validated' runs teachers on the validation split and needs teachers.upload 'weights'",
            "teachers.upload",
        )
    return mistakes


def _check_transfer(settings: ConsolidationBase, data: DataSettings) -> Iterator[tuple[str, str]]:
    """Yield what does not go together in a transfer set: the key and the message."""
    transfer = settings.transfer
    if settings.images is not None and transfer == "public":
        yield (
            "images",
            "has no effect with transfer 'public', whose size data.splits.transfer says; remove it",
        )
    for key, owner, given in (
        ("proxy", "proxy", settings.proxy is not None),
        ("generator", "generated", settings.generator is not None),
    ):
        if given and transfer != owner:
            yield key, f"has no effect with transfer {transfer!r}; set transfer: {owner} or remove it"
    if transfer == "proxy" and settings.proxy is None:
        yield "proxy", "is required by transfer 'proxy': name its data source"
    if transfer == "proxy" and settings.proxy is not None:
        yield from proxy_problems(settings.proxy, data)
    if transfer == "generated" and settings.generator is not None:
        problem = generator_problem(settings.generator)
        if problem is not None:
            yield "generator", problem


def _check_distillation(
    settings: DistillationSettings, weights: Sequence[float], labels_serve: bool
) -> list[tuple[str, str, str]]:
    """Return what does not go together in a distillation: (key, message, the key it depends on)."""
    found = []
    key = "weights" if isinstance(settings, TunedConsolidation) else "weight"
    if weights and min(weights) < 1 and not settings.labels:
        found.append(
            (
                key,
                f"expected 1 on a transfer set without labels, got {min(weights):g}; "
                "set labels: true or remove it",
                "labels",
            )
        )
    if settings.labels and not labels_serve and not weights:
        found.append(("labels", "has no effect with this method; set labels: false", "method"))
    if settings.labels and not labels_serve and weights and min(weights) == 1:
        found.append(("labels", f"has no effect with {key} 1; lower it or set labels: false", key))
    if settings.views is not None and not settings.augmentation:
        found.append(("views", "has no effect without augmentation; name one or remove it", "augmentation"))
    return found
