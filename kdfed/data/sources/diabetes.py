"""A table for regressions, that comes with scikit-learn."""

from __future__ import annotations

import numpy as np

from kdfed.data.dataset import Listing, check_numbers, require
from kdfed.data.sources.source import Source, reader_of
from kdfed.settings import DataSettings


def diabetes(_: str, settings: DataSettings) -> Listing:
    """442 patients, 10 features each, and how far their diabetes went in a year, 25 to 346 (scikit-learn).

    Efron et al. 2004, "Least Angle Regression". Features are unscaled: they are normalised like those of any
    table.
    """
    bunch = require("sklearn.datasets").load_diabetes(scaled=False)
    return Listing(check_numbers(bunch.target, "diabetes"), (), reader_of(bunch.data.astype(np.float32)))


SOURCE = Source("442 patients, 10 features and a number: regression (scikit-learn)", diabetes, "regression")
