"""A hook of MkDocs: an entry ``folder/*`` of the navigation stands for the folder's other pages, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Put the pages in place of such entries."""
    named = set(_pages(config["nav"]))
    config["nav"] = _filled(config["nav"], Path(config["docs_dir"]), named)
    return config


def _pages(entries: Any) -> Iterator[str]:
    """Yield every page that a navigation names."""
    if isinstance(entries, str):
        yield entries
    else:
        for entry in entries.values() if isinstance(entries, dict) else entries:
            yield from _pages(entry)


def _filled(entries: Any, docs: Path, named: set[str]) -> Any:
    if isinstance(entries, dict):
        return {title: _filled(entry, docs, named) for title, entry in entries.items()}
    if isinstance(entries, str):
        return entries
    filled: list[Any] = []
    for entry in entries:
        if isinstance(entry, str) and entry.endswith("/*"):
            found = sorted(page.relative_to(docs).as_posix() for page in docs.glob(f"{entry}.md"))
            filled += [page for page in found if page not in named]
        else:
            filled.append(_filled(entry, docs, named))
    return filled
