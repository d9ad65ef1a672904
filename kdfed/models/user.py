"""Models of the user's: whatever ``package.module:name`` names."""

from __future__ import annotations

from kdfed.models.model import Model, Origin
from kdfed.named import load_named

_DESCRIPTION = "your own callable (input_shape, classes, **options), or (**options), -> torch.nn.Module"


def find(name: str) -> Model:
    """Return what a name stands for now.

    Raises
    ------
    NamedError
        If it stands for nothing that can be called.
    """
    return Model(load_named(name), _DESCRIPTION)


MODELS = Origin(find, _DESCRIPTION)
