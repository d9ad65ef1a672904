"""Data sources: one file a source, named in the registry.

Reading order: :mod:`kdfed.data.sources.source` (what a source is), :mod:`kdfed.data.sources.registry` (which
there are), :mod:`kdfed.data.sources.loading`.
"""

from kdfed.data.sources.loading import kind_of, load_source, task_problem
from kdfed.data.sources.registry import SOURCES
from kdfed.data.sources.source import Source

__all__ = ["SOURCES", "Source", "kind_of", "load_source", "task_problem"]
