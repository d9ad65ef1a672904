"""Where examples come from: arrays in, arrays out.

Reading order: :mod:`kdfed.data.dataset` (what a source returns), :mod:`kdfed.data.sources` (one file a
source), :mod:`kdfed.data.splits`, :mod:`kdfed.data.prepared`.
"""

from kdfed.data.dataset import Dataset
from kdfed.data.loaders import Loadable, examples_of_loader
from kdfed.data.prepared import Examples, Normalisation, PreparedData, prepare, prepare_dataset
from kdfed.data.sources import SOURCES, Source, load_source
from kdfed.data.splits import Splits, split

__all__ = [
    "SOURCES",
    "Dataset",
    "Examples",
    "Loadable",
    "Normalisation",
    "PreparedData",
    "Source",
    "Splits",
    "examples_of_loader",
    "load_source",
    "prepare",
    "prepare_dataset",
    "split",
]
