"""What `hpclbfl data info` shows: the clients' labels as a table or a picture, and what a packed file holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from hpclbfl.config.job import JobConfig
from hpclbfl.config.part_names import brief
from hpclbfl.core.console import make_console
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.files import write_output
from hpclbfl.core.table import DataTable
from hpclbfl.core.text import MAX_SHOWN, cell, printable
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.images import decode
from hpclbfl.data.packed import IntArray, PackedFile
from hpclbfl.data.partitions import partition

logger = Diagnostics(__name__, title="")

_MAX_CLASS_COLUMNS = 20
_CELL_PX = (3, 34)
_PLOT_PX = 640
_NO_CLASSES = ("samples",)
"""Column of samples that have no classes."""


class LabelInfo(NamedTuple):
    """How a job's training set is divided among its clients."""

    name: str
    classes: tuple[str, ...]
    counts: IntArray
    """int64 [C, K]: samples of each class that each client has; [1, K] for the whole set if there are no fixed
    shards."""
    holders: tuple[str, ...]
    """Label of each row: a client's number, or `any` if every epoch divides all samples anew."""
    title: str
    """The set, the partition, and over how many clients."""
    num_test: int
    fingerprint: str
    note: str
    """A remark about the set to print, or empty."""


def label_counts(shards: Sequence[IntArray], labels: IntArray, num_classes: int) -> IntArray:
    """Samples of each class in each shard, int64 [C, K]."""
    return np.stack([np.bincount(labels[shard], minlength=num_classes) for shard in shards]).astype(np.int64)


def label_info(job: JobConfig) -> LabelInfo:
    """Load the job's set and divide it among its clients.

    Raises:
        ConfigError: `clients` is not stated, or the partition cannot be made.
        DataError: the set cannot be read.
    """
    if job.clients is None:
        raise ConfigError("clients: state how many; without it the count follows from the ranks of a run")
    dataset = load_dataset(job.data)
    split, num_classes = dataset.train, dataset.num_classes or 1
    labels = np.zeros(len(split), np.int64) if split.labels is None else split.labels
    classes = dataset.classes or (_NO_CLASSES if split.labels is None else tuple(map(str, range(num_classes))))
    shards = partition(job.partition, split, job.clients, num_classes, job.seed)
    holders = tuple(map(str, range(job.clients)))
    title = f"{job.data.title}, {brief(job.partition.kind)}: {len(labels)} training samples over {job.clients} clients"
    if job.partition.is_reshuffled:
        # The partition has been checked; there are no fixed shards.
        shards, holders, title = [np.arange(len(labels))], ("any",), f"{title}, dealt anew in every epoch"
    counts = label_counts(shards, labels, num_classes)
    num_test, note = len(dataset.test), dataset.note
    return LabelInfo(job.data.title, classes, counts, holders, title, num_test, dataset.fingerprint, note)


def print_info(job: JobConfig, as_json: bool = False, console: Console | None = None) -> None:
    """Print a table of clients by labels; with more than 20 classes, a summary per client.

    Args:
        job: with `clients` stated.
        as_json: print a JSON object instead: data, partition, reshuffle, classes, counts[client][class], num_test,
            fingerprint; where samples are reshuffled, counts has one row.
        console: where to print; None: standard output.

    Raises:
        ConfigError: `clients` is not stated, or the partition cannot be made.
        DataError: the set cannot be read.
    """
    info = label_info(job)
    if info.note:
        logger.info(info.note)
    console = console or make_console()
    if as_json:
        values = {
            "data": info.name,
            "partition": job.partition.kind,
            "reshuffle": job.partition.is_reshuffled,
            "classes": info.classes,
            "counts": info.counts.tolist(),
            "num_test": info.num_test,
            "fingerprint": info.fingerprint,
        }
        console.file.write(json.dumps(values) + "\n")
        return
    classes = f"{len(info.classes)} classes" if info.classes != _NO_CLASSES else "no classes"
    caption = f"{classes}, {info.num_test} test samples, fingerprint {info.fingerprint[:10]}"
    table = DataTable(title=info.title, caption=caption, collapse_padding=True)
    table.add_column("client", justify="right")
    if len(info.classes) <= _MAX_CLASS_COLUMNS:
        _fill_by_class(table, info)
    else:
        _fill_summary(table, info)
    console.print(table)


def _fill_by_class(table: DataTable, info: LabelInfo) -> None:
    for name in info.classes:
        # Names may wrap, numbers may not.
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("total", justify="right", style="bold")
    for holder, row in zip(info.holders, info.counts, strict=True):
        cells = (str(count) if count else "." for count in row)
        table.add_row(holder, *cells, str(row.sum()), end_section=holder == info.holders[-1])
    table.add_row("total", *(str(count) for count in info.counts.sum(axis=0)), str(info.counts.sum()))


def _fill_summary(table: DataTable, info: LabelInfo) -> None:
    for name in ("samples", "classes held", "largest class", "its share"):
        table.add_column(name, justify="left" if name == "largest class" else "right")
    for holder, row in zip(info.holders, info.counts, strict=True):
        held, largest = int(np.count_nonzero(row)), int(row.argmax())
        cells = (cell(info.classes[largest]), f"{row[largest] / row.sum():.1%}") if held else ("", "")
        table.add_row(holder, str(row.sum()), str(held), *cells, end_section=holder == info.holders[-1])
    table.add_row("total", str(info.counts.sum()), str(np.count_nonzero(info.counts.sum(axis=0))), "", "")


def plot(job: JobConfig, path: Path | str) -> None:
    """Draw clients by classes as a heat map, PNG or SVG by the file's ending; client 0 on top.

    Raises:
        ConfigError: another ending.
        EnvironmentFault: it cannot be written.
    """
    import vl_convert

    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"{path}: a plot is a .png or an .svg")
    specification = json.dumps(_heat_map(label_info(job)))
    if path.suffix == ".png":
        write_output(path, vl_convert.vegalite_to_png(specification, scale=2))
    else:
        write_output(path, vl_convert.vegalite_to_svg(specification).encode())


def _heat_map(info: LabelInfo) -> dict[str, Any]:
    import altair

    num_clients, num_classes = info.counts.shape
    cells = [
        {"client": holder, "class": name, "samples": int(row[label])}
        for holder, row in zip(info.holders, info.counts, strict=True)
        for label, name in enumerate(info.classes)
        if row[label]  # white: none at all
    ]
    step_x, step_y = (int(np.clip(_PLOT_PX / count, *_CELL_PX)) for count in (num_classes, num_clients))
    # Names that would overlap are left out, at even distances.
    x_axis = altair.Axis(labelAngle=-45, labelOverlap=False, values=_thinned(info.classes, step_x))
    y_axis = altair.Axis(labelOverlap=False, values=_thinned(info.holders, step_y))
    x_scale, y_scale = altair.Scale(domain=list(info.classes)), altair.Scale(domain=list(info.holders))
    chart = (
        altair.Chart(altair.InlineData(values=cells), title=f"{info.title}, per client and class")
        .mark_rect()
        .encode(
            x=altair.X("class:N", sort=None, title="class", axis=x_axis, scale=x_scale),
            y=altair.Y("client:N", sort=None, title="client", axis=y_axis, scale=y_scale),
            color=altair.Color("samples:Q", title="images", scale=altair.Scale(scheme="blues", domainMin=0)),
        )
        .properties(width={"step": step_x}, height={"step": step_y})
    )
    specification: dict[str, Any] = chart.to_dict()
    return specification


def _thinned(values: Sequence[Any], step_px: int, label_px: int = 14) -> list[Any]:
    return list(values[:: max(1, -(-label_px // step_px))])


def packed_info(path: Path | str) -> dict[str, Any]:
    """The contents of a packed file: classes, fingerprint, and per split the count, counts per class and first size."""
    with PackedFile(path) as file:
        splits = {
            name: {
                "num_samples": len(split),
                "encoded_bytes": int(split.sizes().sum()),
                "label_counts": np.bincount(split.labels, minlength=len(file.classes)).tolist(),
                "first_image_px": decode(split.encoded(0), split.describe(0)).size if len(split) else None,
            }
            for name, split in file.splits.items()
        }
        return {
            "path": str(file.path),
            "classes": list(file.classes),
            "splits": splits,
            "fingerprint": file.fingerprint(),
        }


def print_packed_info(path: Path | str, as_json: bool = False, console: Console | None = None) -> None:
    """Print what a packed file holds, as a table or (`as_json`) as a JSON object.

    Raises:
        DataError: it is missing or torn.
    """
    info = packed_info(path)
    console = console or make_console()
    if as_json:
        console.file.write(json.dumps(info) + "\n")
        return
    names = ", ".join(printable(name, MAX_SHOWN) for name in info["classes"][:_MAX_CLASS_COLUMNS])
    more = len(info["classes"]) - _MAX_CLASS_COLUMNS
    names += f" and {more} more" if more > 0 else ""
    caption = f"{len(info['classes'])} classes: {names}\nfingerprint {info['fingerprint']}"
    table = DataTable(title=info["path"], caption=Text(caption))
    for column in ("split", "images", "MB", "per class, least to most", "first image"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in info["splits"].items():
        counts, size = split["label_counts"], split["first_image_px"]
        table.add_row(
            cell(name),
            str(split["num_samples"]),
            f"{split['encoded_bytes'] / 1e6:.1f}",
            f"{min(counts)} to {max(counts)}",
            f"{size[0]}x{size[1]} px" if size else "",
        )
    console.print(table)
