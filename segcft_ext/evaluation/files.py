"""The files of an evaluation: JSON with every figure, CSV with every cell of the tables, Markdown to read."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segcft_ext.evaluation.table import Table
from segcft_ext.evaluation.tables import evaluation_tables, judge_rows, summary_line
from segcft_ext.folders import write_csv_atomically, write_json_atomically, write_text_atomically

__all__ = ["finite", "to_markdown", "write_evaluation"]


def to_markdown(table: Table) -> str:
    """The table as Markdown; the best method of each column in bold."""
    lines = [f"### {table.title}", "", table.note, "", "| | " + " | ".join(table.columns) + " |"]
    lines.append("|---" * (len(table.columns) + 1) + "|")
    for name, cells in table.rows:
        texts = [f"**{c.text(table.digits)}**" if c.best else c.text(table.digits) for c in cells]
        shown = name.replace("|", r"\|")
        lines.append(f"| {shown} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def finite(value: Any) -> Any:
    """The same content with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_evaluation(evaluation: Mapping[str, Any], directory: str | os.PathLike[str]) -> None:
    """Write ``evaluation.json``, ``evaluation.csv`` and ``evaluation.md`` into a folder, each of them atomically."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json_atomically(directory / "evaluation.json", finite(evaluation))
    tables = evaluation_tables(evaluation)
    lines: list[list[Any]] = [["table", "row", "column", "value", "ci95_low", "ci95_high", "best"]]
    for table in tables:
        for name, cells in table.rows:
            for heading, cell in zip(table.columns, cells):
                numbers = [finite(value) for value in (cell.value, *(cell.interval or (None, None)))]
                lines.append([table.key, name, heading, *numbers, int(cell.best)])
    write_csv_atomically(directory / "evaluation.csv", lines)
    head = f"# Evaluation: {evaluation['data']['name']}\n\n{summary_line(evaluation)}\n"
    judge = ["### The judge on real test images", "", "| | Dice | error of the area, % |", "|---|---|---|"]
    judge += [f"| {' | '.join(row)} |" for row in judge_rows(evaluation)]
    markdown = "\n".join([head, *map(to_markdown, tables), "\n".join(judge)])
    write_text_atomically(directory / "evaluation.md", markdown + "\n")
