"""Self-contained HTML pages: pictures are embedded, nothing is requested from anywhere, so a page can be mailed."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from segcft_ext.folders import write_text_atomically
from segcft_ext.report_style import STYLE

__all__ = ["figure", "folded", "listing", "table", "write_page"]

FIGURE_DPI = 125  # CSS pixels for each inch of a figure
READABLE = 800  # CSS pixels that a figure keeps on a narrow screen, where it can be scrolled


def write_page(output: Path, title: str, lead: str, sections: Sequence[tuple[str, str, Sequence[str]]]) -> None:
    """Write a page, atomically.

    Args:
        output: the HTML file.
        title: the heading.
        lead: one line below it.
        sections: anchor, heading and HTML parts of each section; a section without parts is left out.
    """
    shown = [section for section in sections if section[2]]
    links = " · ".join(f'<a href="#{key}">{escape(heading)}</a>' for key, heading, _ in shown)
    body = "\n".join(
        f'<section id="{key}"><h2>{escape(heading)}</h2>\n' + "\n".join(parts) + "</section>"
        for key, heading, parts in shown
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(
        output,
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>{STYLE}</style></head>
<body><header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p><nav>{links}</nav></header>
<main>
{body}
</main></body></html>
""",
    )


def figure(png: bytes, caption: str) -> str:
    """A picture at its own resolution with a caption below, as WebP, which takes a fifth of the PNG's bytes."""
    with Image.open(io.BytesIO(png)) as image:
        dpi = image.info.get("dpi", (FIGURE_DPI, FIGURE_DPI))[0]
        size = round(image.width * FIGURE_DPI / dpi)
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=90)
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    picture = (
        f'<img alt="{escape(caption)}" width="{size}" style="min-width: {min(size, READABLE)}px" '
        f'src="data:image/webp;base64,{source}">'
    )
    return f'<figure><div class="scroll">{picture}</div>{text}</figure>'


def listing(items: Mapping[str, Any]) -> str:
    """Names and values as a description list."""
    return "<dl>" + "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in items.items()) + "</dl>"


def folded(summary: str, parts: Sequence[str]) -> str:
    """Parts that are hidden until the reader unfolds them; "" without parts."""
    return f"<details><summary>{escape(summary)}</summary>" + "\n".join(parts) + "</details>" if parts else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of plain cells; the first of each row is its heading."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{escape(str(row[0]))}</th>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
