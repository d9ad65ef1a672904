"""What every page is made of: templates, which hold all HTML, and the plain values of their tables.

A template lies beside the code that fills it. Whatever it is given is escaped, except pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.filesize import decimal

from kdfed.optional import optional
from simulations.report.words import number, percent, plural


class Cell(NamedTuple):
    """A cell of a table that is more than its text.

    Parameters
    ----------
    text
        What it says.
    code, bold
        How it looks.
    colour
        Number of an arm's colour, shown before the text.
    """

    text: str
    code: bool = False
    bold: bool = False
    colour: int | None = None


class Table(NamedTuple):
    """A table: numbers from column ``numbers_from`` on, each ``sums``-th row a sum."""

    heads: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell]]
    numbers_from: int = 99
    sums: int = 0


def render_html(template: str, **values: Any) -> str:
    """Fill a template; the page has inline styles and pictures, and needs no other file.

    Parameters
    ----------
    template
        Its path within the package ``simulations``.
    values
        What it names.

    Raises
    ------
    RunError
        If Jinja2 is not installed.
    """
    jinja2 = optional("jinja2", "pages")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simulations", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "plural": plural,
        "bytes": lambda count: decimal(round(count)),
    }
    return str(environment.get_template(template).render(values))
