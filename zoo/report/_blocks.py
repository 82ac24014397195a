"""A page as a list of blocks, written as Markdown or as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 860px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin-top: 2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem } caption { text-align: left; color: #555 }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; border-bottom: 1px solid #e3e3e3; vertical-align: top }
.n { text-align: right; font-variant-numeric: tabular-nums } td.n { white-space: nowrap } img { max-width: 100%; height: auto }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .85rem } .main { font-size: 1.2rem; font-weight: 600 }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Heading:
    """A section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; ``strong`` for the main result."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Code:
    """Something to copy."""

    text: str


@dataclass(frozen=True)
class Table:
    """Columns whose name starts with ``>`` are aligned right; ``best`` are cells (row, column) printed bold."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    best: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A PNG file; Markdown links to it, HTML embeds it."""

    path: Path
    alt: str


Block = Heading | Text | Code | Table | Picture


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page as Markdown; pictures must be in the same folder."""
    return "\n\n".join([f"# {_md(title)}", *(_md_block(block) for block in blocks)]) + "\n"


def _md_block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_md(text)}"
        case Text(text, strong):
            return f"**{_md(text)}**" if strong else _md(text)
        case Code(text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{fence}\n{text.rstrip()}\n{fence}"
        case Picture(path, alt):
            return f"![{_md(alt)}]({path.name})"
        case Table():
            return _md_table(block)


def _md_table(table: Table) -> str:
    cells = [[_md(str(cell)) for cell in row] for row in table.rows]
    for row, column in table.best:
        cells[row][column] = f"**{cells[row][column]}**"
    lines = [
        [_md(name.lstrip(">")) for name in table.columns],
        ["---:" if name.startswith(">") else "---" for name in table.columns],
        *cells,
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str) -> str:
    r"""Text with Markdown's special characters escaped.

    >>> print(_md("a|b *c* <d> snake_case _e_"))
    a\|b \*c\* \<d> snake_case \_e\_
    """
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    text = re.sub(r"([\\`*<|])", r"\\\1", text).replace("](", r"]\(")
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text)


def page(title: str, blocks: Sequence[Block]) -> str:
    """The page as HTML: pictures inlined, every text escaped, no external resources."""
    body = "\n".join(_html_block(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{_escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html_block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_escape(text)}</h2>"
        case Text(text, strong):
            return f'<p class="main">{_escape(text)}</p>' if strong else f"<p>{_escape(text)}</p>"
        case Code(text):
            return f"<pre>{_escape(text)}</pre>"
        case Picture(path, alt):
            packed = base64.b64encode(path.read_bytes()).decode()
            return f'<p><img alt="{_escape(alt)}" src="data:image/png;base64,{packed}"></p>'
        case Table():
            return _html_table(block)


def _html_table(table: Table) -> str:
    kinds = [' class="n"' if name.startswith(">") else "" for name in table.columns]
    head = "".join(f"<th{kind}>{_escape(name.lstrip('>'))}</th>" for kind, name in zip(kinds, table.columns))
    body = []
    for number, row in enumerate(table.rows):
        cells = [
            f"<b>{_escape(str(cell))}</b>" if (number, at) in table.best else _escape(str(cell)) for at, cell in enumerate(row)
        ]
        body.append("<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, cells)) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n' + "\n".join(body) + "\n</tbody></table></div>"


def _escape(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode(), quote=True)
