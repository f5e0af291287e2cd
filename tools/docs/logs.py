"""The tables of a log, from its schema."""

from __future__ import annotations

from hpclbfl.runs.log.schema import DTYPES, MEANINGS, TABLES, UNITS
from tools.docs.markdown import table

ROWS = {
    "steps": "One row per client and step.",
    "evals": "One row per evaluation and split.",
    "layers": "One row per parameter, every `gradients.layers_every` steps.",
    "plans": "One row per client, whenever batch sizes change.",
    "events": "One row per event, such as a gradient that is not finite.",
    "metrics": "One row per evaluation and metric of the job's loss.",
}
"""What a table's rows stand for."""


def logs() -> str:
    """The reference, as Markdown."""
    parts = []
    for name in TABLES:
        columns = [
            (f"`{column}`", UNITS[name][column].replace("1", "") or " ", MEANINGS[name][column])
            for column in DTYPES[name].names or ()
        ]
        parts += [f"#### `{name}`", ROWS.get(name, ""), table(("column", "unit", "meaning"), columns)]
    return "\n\n".join(part for part in parts if part)
