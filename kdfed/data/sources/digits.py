"""Small handwritten digits, that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from kdfed.data.dataset import Listing, check_labels, class_names, require
from kdfed.data.sources.source import Source, reader_of
from kdfed.settings import DataSettings


def digits(_: str, settings: DataSettings) -> Listing:
    """1,797 handwritten digits of 8 x 8 pixels (scikit-learn); the 17 grey levels are spread over 0..255."""
    bunch = require("sklearn.datasets").load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    names = class_names(settings, tuple("0123456789"))
    labels = check_labels(bunch.target, 10, "digits")
    return Listing(labels, names, reader_of(images), mean=(0.3053,), std=(0.3759,))


SOURCE = Source("1,797 handwritten digits of 8 x 8 pixels (scikit-learn)", digits, "classification")
