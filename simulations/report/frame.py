"""What every page is made of: its frame, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

_CSS = Path(__file__).with_name("page.css")


def html_page(title: str, body: str) -> str:
    """Return a whole page with inline styles, so that it needs no other file.

    Parameters
    ----------
    title
        Text.
    body
        HTML of what stands in ``main``.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>\n{_CSS.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def html_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 99, sums: int = 0
) -> str:
    """Write a table of HTML cells: numbers from column ``numbers_from`` on, each ``sums``-th row a sum."""

    def kind(column: int) -> str:
        return ' class="number"' if column >= numbers_from else ""

    head = "".join(f'<th scope="col"{kind(column)}>{text}</th>' for column, text in enumerate(heads))
    body = []
    for index, row in enumerate(rows, start=1):
        cells = "".join(f"<td{kind(column)}>{cell}</td>" for column, cell in enumerate(row))
        body.append(f'<tr class="sum">{cells}</tr>' if sums and index % sums == 0 else f"<tr>{cells}</tr>")
    content = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll table">{content}</div>'
