from __future__ import annotations

import numpy as np

from kdfed.data import load_source
from kdfed.settings import DataSettings


def test_diabetes_is_442_patients_with_a_number_each() -> None:
    data = load_source(DataSettings(task="regression", source="diabetes"))
    assert data.inputs.shape == (442, 10)
    assert (data.labels.dtype, data.labels.min(), data.labels.max()) == (np.float32, 25, 346)
    assert data.class_names == ()
