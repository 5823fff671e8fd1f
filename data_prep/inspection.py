"""One page that shows a datalist: counts, variables, pictures, and the cases that should be looked at first.

The page is self-contained and holds nothing that the datalist does not hold: ids are the hashed ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from data_prep.cases import NOTES, REASONS
from data_prep.label_faults import FAULTS, MAX_Z, Fault, find_faults
from data_prep.pictures import correlation_figure, sheet_figure, shown_size, spread_cases, variables_figure
from data_prep.rows import read_table
from segcft_ext.datalist import Datalist, read_datalist
from segcft_ext.datalist_format import SPLITS, Variable
from segcft_ext.figures import to_png
from segcft_ext.figures.style import lies_down
from segcft_ext.html import figure, folded, listing, table, write_page
from segcft_ext.wording import words, written_unit

__all__ = ["write_inspection"]

COLUMNS = 6
SHEET_CASES = 8 * COLUMNS
SHOWN_FAULTS = 3 * COLUMNS
LISTED_FAULTS = 200


def write_inspection(path: Path, output: Path) -> list[Fault]:
    """Write the page.

    Args:
        path: the datalist.
        output: the HTML file.

    Returns:
        What is unusual about the cases.

    Raises:
        DatalistError: when the datalist contradicts its format, or an image or label map is not as it says.
        ValueError: when a table that lies beside the datalist cannot be read.
    """
    datalist = read_datalist(path)
    faults = find_faults(datalist)
    values = _values(datalist)
    suspects = len({fault.entry["id"] for fault in faults})
    lead = (
        f"{len(values)} cases, {len(datalist.structures)} structures, {len(datalist.variables)} variables; "
        f"{suspects} cases to look at first."
    )
    sections = [
        (
            "cases",
            "Cases",
            [_counts(values), _header(datalist), *_left_out(path.parent, len(values)), *_notes(datalist)],
        ),
        ("variables", "Variables", [_variables(datalist, values), _figure(variables_figure(datalist), _HISTOGRAMS)]),
        ("correlations", "Correlations", _correlations(datalist, values)),
        ("pictures", "Pictures", [_sheet(datalist)]),
        ("faults", "To look at first", _faults(datalist, faults, suspects)),
    ]
    write_page(output, f"Data: {datalist.name}", lead, sections)
    return faults


_HISTOGRAMS = "The distribution of every variable, by split and by source, in % of the cases of each."


def _values(datalist: Datalist) -> pd.DataFrame:
    """One row for each case: source, split, use, and every variable (NaN where missing)."""
    rows = [
        {"source": entry["source"], "split": split, "use": entry.get("use", "")}
        | {name: entry["variables"].get(name) for name in datalist.variable_names}
        for split in SPLITS
        for entry in datalist.entries[split]
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(datalist.variable_names, float))


def _counts(values: pd.DataFrame) -> str:
    columns = [("training", "guide"), ("training", "judge"), ("validation", ""), ("test", "")]
    counts = values.groupby(["source", "split", "use"]).size()
    rows = [
        [source, *(found := [int(counts.get((source, *column), 0)) for column in columns]), sum(found)]
        for source in dict.fromkeys(values["source"])
    ]
    if len(rows) > 1:
        rows.append(["all", *(sum(int(row[i]) for row in rows) for i in range(1, len(columns) + 2))])
    return table(["source", *(" ".join(filter(None, column)) for column in columns), "all"], rows)


def _header(datalist: Datalist) -> str:
    entries = [entry for split in SPLITS for entry in datalist.entries[split]]
    spacings = np.array([entry["spacing"] for entry in entries if entry.get("spacing")])
    known = f"known for {len(spacings)} of {len(entries)} cases"
    if len(spacings):
        known += f", {spacings.min():.3g} to {spacings.max():.3g} mm"
    stored = f"{datalist.intensity_range[0]:g} to {datalist.intensity_range[1]:g}"
    if datalist.window is not None:
        stored += f", which stand for {datalist.window[0]:g} to {datalist.window[1]:g} {datalist.intensity_unit}"
    return listing(
        {
            "image size": " × ".join(map(str, datalist.size)),
            "intensities": stored,
            "pixel spacing": known,
            "structures": ", ".join(f"{name} ({datalist.labels[name]})" for name in datalist.structures),
            "true counterfactuals": "known" if datalist.truth else "unknown",
        }
    )


def _left_out(folder: Path, accepted: int) -> list[str]:
    """What data_prep has filtered and rejected, where its tables lie beside the datalist."""
    parts = []
    if (folder / "filters.csv").is_file():
        filters = [(row["what"], row["count"]) for row in _rows(folder / "filters.csv", "what", "count")]
        parts += ["<h3>Rows of the source's table</h3>", table(["", "count"], filters)]
    if (folder / "rejected.csv").is_file():
        counts = Counter((row["reason"], row["source"]) for row in _rows(folder / "rejected.csv", "reason", "source"))
        sources = sorted({source for _, source in counts})
        rows: list[Sequence[Any]] = [
            (reason, *(counts[reason, source] for source in sources), REASONS.get(reason, ""))
            for reason in dict.fromkeys(found for (found, _), _ in counts.most_common())
        ]
        none = '<p class="note">No case was rejected.</p>'
        heading = f"<h3>Rejected cases: {counts.total()} of {counts.total() + accepted} found</h3>"
        parts += [heading, table(["reason", *sources, ""], rows) if rows else none]
    return parts


def _notes(datalist: Datalist) -> list[str]:
    notes = Counter(n for split in SPLITS for entry in datalist.entries[split] for n in entry.get("notes", ()))
    rows = [(note, count, NOTES.get(note, "")) for note, count in notes.most_common()]
    return ["<h3>Notes on accepted cases</h3>", table(["note", "cases", ""], rows)] if rows else []


def _variables(datalist: Datalist, values: pd.DataFrame) -> str:
    columns = ["", "kind", "unit", "missing", "min", "median", "max", "mean ± SD"]
    return table(columns, [_variable(variable, values[variable.name]) for variable in datalist.variables])


def _variable(variable: Variable, values: pd.Series) -> Sequence[Any]:
    kind = variable.kind + (", measured" if variable.measurement is not None else "")
    known = values.dropna()
    start = [variable.name, kind, written_unit(variable.unit) or "–", len(values) - len(known)]
    if variable.categories:
        shares = (f"{name} {int((known == i).sum())}" for i, name in enumerate(variable.categories))
        return [*start, "", "", "", ", ".join(shares)]
    if known.empty:
        return [*start, "", "", "", ""]
    three = [f"{value:.4g}" for value in (known.min(), known.median(), known.max())]
    return [*start, *three, f"{known.mean():.4g} ± {known.std(ddof=0):.2g}"]


def _correlations(datalist: Datalist, values: pd.DataFrame) -> list[str]:
    names = [v.name for v in datalist.variables if v.kind != "categorical" and values[v.name].nunique() > 1]
    if len(names) < 2:
        return []
    caption = "Pearson's r over the cases that have both variables; binary ones by index. Variables that move together "
    caption += "ask an intervention on one alone for anatomy that the data hardly show."
    return [_figure(correlation_figure(values[names]), caption)]


def _sheet(datalist: Datalist) -> str:
    shown = spread_cases(datalist, SHEET_CASES)
    total = sum(len(datalist.entries[split]) for split in SPLITS)
    titles = [f"{entry['source']} {entry['id'][:8]} {split}" for split, entry in shown]
    caption = f"{len(shown)} of {total} cases, spread evenly over the sources."
    if len(datalist.size) == 3:
        caption += " Volumes are shown by their middle slice."
    if lies_down(shown_size(datalist)):
        caption += " Pictures lie on their side, the top on the left."
    return _figure(sheet_figure(datalist, [entry for _, entry in shown], titles, COLUMNS), caption)


def _faults(datalist: Datalist, faults: Sequence[Fault], suspects: int) -> list[str]:
    if not faults:
        return ["<p>No label map and no measured value is unlike those of the other cases of its source.</p>"]
    parts = [
        f"<p>{suspects} cases are unlike the others of their source, or their masks do not lie on their picture; where "
        f"likeness is a matter of degree, by more than {MAX_Z:g} robust standard deviations. A rare anatomy is as "
        "unlike the others as a wrong mask is: look before you remove. The source's median stands in brackets.</p>"
    ]
    for kind, meaning in FAULTS.items():
        found = [fault for fault in faults if fault.kind == kind]
        if not found:
            continue
        shown = found[:SHOWN_FAULTS]
        titles = [f"{fault.entry['id'][:6]} {_short(fault)}" for fault in shown]
        drawn = sheet_figure(datalist, [fault.entry for fault in shown], titles, COLUMNS)
        caption = f"The worst {len(shown)} of {len(found)}." if len(found) > len(shown) else ""
        rows = [(fault.entry["id"], fault.entry["source"], fault.split, fault.text) for fault in found[:LISTED_FAULTS]]
        heading = f"{len(found)} of them" if len(found) <= LISTED_FAULTS else f"The worst {LISTED_FAULTS}"
        parts += [
            f"<h3>{escape(words(kind).capitalize())}: {len(found)}</h3>",
            f'<p class="note">{escape(meaning.capitalize())}.</p>',
            _figure(drawn, caption),
            folded(f"{heading}, with ids", [table(["id", "source", "split", ""], rows)]),
        ]
    return parts


def _short(fault: Fault) -> str:
    return "" if fault.kind == "swapped_sides" else fault.text


def _figure(drawn: Figure, caption: str) -> str:
    return figure(to_png(drawn), caption)


def _rows(path: Path, *columns: str) -> list[dict[Any, str]]:
    frame = read_table(path)
    if not set(columns) <= set(frame):
        raise ValueError(f"{path}: found the columns {list(frame)}, expected {list(columns)}, as data_prep writes it")
    return frame.to_dict("records")
