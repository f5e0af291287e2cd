"""The numbers of the paper's tables, and which runs belong to which row.

A run belongs to a row in one of two ways:

- by its name. `table1-resnet50-fa` belongs to Table I, ResNet50, FA, whatever its model and its H are: small runs,
  whose models and H are scaled down, name their row. `table1-resnet50` leaves out the method; then H must be that of
  the paper. The kind of synchroniser and the partition are always those of the job: a name cannot turn BSP into FA.
- by its job, under any name that does not begin with a figure or a table (`fig7-resnet50`): the row's model and whole
  data set, partition with its labels per client, synchroniser and H, the table's number of clients, and no scaler. The
  paper does not state batch sizes: any will do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from hpclbfl.analysis.read.configs import as_text, describe_data
from hpclbfl.config.sections import Section
from hpclbfl.config.sections.base import Number, PositiveFloat, PositiveInt
from hpclbfl.config.validation import validated
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.text import printable
from hpclbfl.core.yamlfile import read_mapping

FOLDER = Path(__file__).parent
"""One file per table."""
Partition = Literal["iid", "non-iid"]
SHOWN: dict[Partition, str] = {"iid": "IID", "non-iid": "Non-IID"}
"""Names of partitions in the tables."""


class PaperMethod(Section):
    """A synchroniser, and its name in the table."""

    shown: str
    kind: Literal["bsp", "fedavg"]
    local_steps: PositiveInt | None = None
    local_epochs: PositiveFloat | None = None

    def is_run_by(self, job: Mapping[str, Any]) -> bool:
        """Whether a flat job has this kind and this H."""
        # As texts: numbers become texts in a frame in which another run has `local_steps: proportional`.
        keys = ("kind", "local_steps", "local_epochs")
        return all(as_text(getattr(self, key)) == as_text(job.get(f"sync.{key}")) for key in keys)


class PaperModel(Section):
    """A model with its data set, and their name in the table."""

    shown: str
    data: str
    """The data set: `data.name` of a job file, or the stem of a packed file."""
    labels: PositiveInt
    """Labels per client, in the rows that are not i.i.d."""


class PaperRow(Section):
    """A number of the table."""

    model: str
    partition: Partition
    method: str
    accuracy: Annotated[Number, Field(ge=0.0, le=100.0)]
    """Test accuracy as printed, percent."""
    note: str | None = None
    """A peculiarity of it."""

    @property
    def key(self) -> str:
        """Names the row within its table: `resnet50/iid/bsp`."""
        return f"{self.model}/{self.partition}/{self.method}"


class PaperTable(Section):
    """A table of the paper."""

    title: str
    source: str
    clients: PositiveInt
    """Clients, in all rows."""
    column: str
    """Heading of the column that names the method."""
    methods: dict[str, PaperMethod]
    models: dict[str, PaperModel]
    """By the model's name in a job file."""
    rows: tuple[PaperRow, ...]

    def within(self, row: PaperRow) -> str:
        """Partition and method of a row as in the table: `IID BSP`."""
        return f"{SHOWN[row.partition]} {self.methods[row.method].shown}"


def known_tables() -> list[str]:
    """Names that `paper_table` takes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def paper_table(name: str) -> PaperTable:
    """Read the numbers of a table.

    Raises:
        ConfigError: there is no such table.
    """
    if name not in known_tables():
        raise ConfigError(f"--paper {printable(name)}: no such table, known are {', '.join(known_tables())}")
    path = FOLDER / f"{name}.yaml"
    return validated(PaperTable, read_mapping(path, "a table of the paper is a mapping"), str(path))


def row_of(job: Mapping[str, Any], name: str, table: PaperTable) -> PaperRow | None:
    """The row that a run belongs to (see the module); None: no row of this table.

    Args:
        job: flat, see `configs.flatten`.
        name: of the table.
    """
    partition = _partition(job)
    words = str(job.get("name") or "").split("-")
    if words[0] == name:
        model, method = (*words[1:], None, None)[:2]
        if len(words) > 3 or model not in table.models or (method is not None and method not in table.methods):
            return None
        methods = [key for key, known in table.methods.items() if known.is_run_by(job)]
        if method is not None:
            methods = [method] if table.methods[method].kind == job.get("sync.kind") else []
    else:
        model = str(job.get("model.name"))
        methods = [key for key, known in table.methods.items() if known.is_run_by(job)]
        if re.match(r"(fig|table)\d", words[0]) or not _is_of_the_table(job, model, partition, table):
            return None
    found = [r for r in table.rows if (r.model, r.partition) == (model, partition) and r.method in methods]
    return found[0] if found else None


def _is_of_the_table(job: Mapping[str, Any], model: str, partition: Partition | None, table: PaperTable) -> bool:
    """Whether a job has a model of the table with its data and labels, the table's clients, and no scaler."""
    known = table.models.get(model)
    return (
        known is not None
        and (describe_data(job), job.get("data.limit")) == (known.data, None)
        and job.get("partition.labels") == (known.labels if partition == "non-iid" else None)
        and job.get("clients") == table.clients
        and job.get("gradients.scaler.factor") is None
    )


def _partition(job: Mapping[str, Any]) -> Partition | None:
    kind = job.get("partition.kind") or "iid"
    return "iid" if kind == "iid" else "non-iid" if kind == "labels_per_client" else None
