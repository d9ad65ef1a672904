"""Models, fitted to the data's input shape and number of classes: one file a model, named in the registry.

Every model maps inputs [N, *input_shape] to logits [N, classes]. Our own use no batch statistics by default.

Reading order: :mod:`kdfed.models.model` (what a model is), :mod:`kdfed.models.registry` (which there are),
:mod:`kdfed.models.building`, :mod:`kdfed.models.trying` (what is asked of a foreign one),
:mod:`kdfed.models.weights`.
"""

from kdfed.fixed_norm import batch_norms
from kdfed.inputs import SPARING, frozen, has_copies, spare_inputs
from kdfed.models.building import build_model, check_model, outputs_of
from kdfed.models.dead import Units, dead_units
from kdfed.models.model import Model, Origin
from kdfed.models.registry import MODELS, find_model, is_shipped
from kdfed.models.weights import State, buffer_keys, device_of, load_state, state_of

__all__ = [
    "MODELS",
    "SPARING",
    "Model",
    "Origin",
    "State",
    "Units",
    "batch_norms",
    "buffer_keys",
    "build_model",
    "check_model",
    "dead_units",
    "device_of",
    "find_model",
    "frozen",
    "has_copies",
    "is_shipped",
    "load_state",
    "outputs_of",
    "spare_inputs",
    "state_of",
]
