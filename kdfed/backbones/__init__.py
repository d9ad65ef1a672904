"""Pre-trained backbones: networks that others trained, cut in two where training begins.

What lies below the cut is frozen and computed once; what lies above it, with a head, is the federated model.

Reading order: :mod:`kdfed.backbones.backbone` (what a backbone is), :mod:`kdfed.backbones.registry` (which
there are), :mod:`kdfed.backbones.cut` (frozen part and tail), :mod:`kdfed.backbones.features` (activations at
the cut, computed once), :mod:`kdfed.backbones.weights` (files of weights).
"""

from kdfed.backbones.backbone import Backbone, Network, Origin
from kdfed.backbones.cut import Cut, Frozen, Tail, split
from kdfed.backbones.features import FeatureCache, compute, default_cache
from kdfed.backbones.registry import BACKBONES, check_backbone, find_backbone, is_shipped_backbone
from kdfed.backbones.settings import BackboneSettings
from kdfed.backbones.weights import read_state

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneSettings",
    "Cut",
    "FeatureCache",
    "Frozen",
    "Network",
    "Origin",
    "Tail",
    "check_backbone",
    "compute",
    "default_cache",
    "find_backbone",
    "is_shipped_backbone",
    "read_state",
    "split",
]
