"""Folders of runs: whatever one run's files hold, the report, the table and the export show the other one as it is."""

import contextlib
import io
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from hypothesis import strategies as st

from hpclbfl.analysis.measure.report import load_some, make_report
from hpclbfl.analysis.paper.compare import compare_with_paper
from hpclbfl.analysis.paper.report import print_paper
from hpclbfl.analysis.read.load import CACHE_FOLDER, load
from hpclbfl.analysis.show.export import export
from hpclbfl.analysis.show.page import page
from hpclbfl.analysis.show.printing import print_json, print_report
from hpclbfl.analysis.show.render import figure_rows
from hpclbfl.analysis.show.watch import watch
from hpclbfl.core.text import printable
from hpclbfl.runs.log.schema import DTYPES
from hpclbfl.runs.log.writer import RunLog
from tests.analysis.conftest import make_old, two_client_run
from tests.fuzz.budget import fuzz

FILES = ("config.yaml", "status.json", "DONE.json", "attempts/000/provenance.json")
_KEYS = (
    *("name", "seed", "clients", "data", "sync", "partition", "model", "gradients", "optimizer", "batching", "kind"),
    *(
        "path",
        "scaler",
        "threshold",
        "factor",
        "local_steps",
        "labels",
        "alpha",
        "local_batch_size",
        "lr",
        "run",
        "arm",
    ),
    *(
        "state",
        "error",
        "step",
        "epoch",
        "top1",
        "elapsed_s",
        "reason",
        "hash",
        "num_ranks",
        "resumed_from_step",
        "git",
    ),
    *("commit", "dirty", "versions", "torch", "cpu", "gpus", "argv", "engine", "data_fingerprint", "time", "checksum"),
    *("*", "^.*$", "a.b", "config", "config.run", "samples_per_s", "place", "label", "file", "limit", "x", "top1"),
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(
        [-1, 0, 1, 2, 2**31, 2**40, 2**62, 2**63, -(2**63) - 1, 10**30, 1e308, float("nan"), float("inf")]
    )
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["done", "running", "failed", "bsp", "iid", "fedavg", "run", "x" * 5000, "\x1b[31m", "r[/red]", "$^$", "*"]
    )
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
_OBJECTS = st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=8)
_YAML = _OBJECTS.map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode())
_JSON = _OBJECTS.map(lambda value: json.dumps(value).encode())
_ODD = st.sampled_from(
    [
        b"!!bool foo",
        b"!!timestamp x",
        b"a: !!python/object:os.system x",
        b"{" * 300,
        b"[" * 5000,
        b'{"a":' * 300 + b"1" + b"}" * 300,
        b'{"state": "\\ud800"}',
        b"seed: " + b"9" * 5000,
        b"seed: a",
        b"seed: {a: 1}",
        b"clients: [1]",
        b"sync: [bsp]",
        b"\xff\xfe",
        b"\0",
        b"x" * (1 << 20) + b"x",
        b"a: &a [*a]",
        b"? [a, b]\n: 1",
        b'{"top1": "x", "step": -1, "elapsed_s": "NaN", "num_ranks": 1000000000000}',
    ]
)


def _spoilt(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    parts = st.tuples(content, st.integers(0, 300), st.binary(max_size=4))
    return parts.map(lambda part: part[0][: part[1]] + part[2] + part[0][part[1] :])


_NAME = st.sampled_from(["a", "b", "table1-resnet50-fa"]) | st.text(max_size=5)
_NUMBER = st.sampled_from([0, 1, 2, 0.5, 1e308, 2**63 - 1, float("inf"), float("nan")]) | st.integers() | st.floats()
_SECTION = st.dictionaries(st.sampled_from(_KEYS), _SCALARS, max_size=3)
# What can be read, so that odd values come further.
_JOBS = st.fixed_dictionaries(
    {"name": _NAME, "clients": st.integers(1, 4) | st.just(2**63 - 1)},
    optional={
        "seed": st.integers(0, 3) | st.sampled_from([None, 2**63 - 1]),
        "sync": st.fixed_dictionaries({"kind": _NAME}, optional={"local_steps": _SCALARS, "local_epochs": _SCALARS}),
        "partition": st.fixed_dictionaries({"kind": _NAME}, optional={"labels": _SCALARS, "alpha": _SCALARS}),
        "model": st.fixed_dictionaries({"name": _NAME | _SCALARS}),
        "data": st.fixed_dictionaries({}, optional={"name": _SCALARS, "path": _SCALARS, "limit": _SCALARS}),
        "gradients": st.fixed_dictionaries(
            {}, optional={"scaler": st.none() | st.fixed_dictionaries({"factor": _NUMBER, "threshold": _NUMBER})}
        ),
        "batching": _SECTION,
        "optimizer": _SECTION,
        "samples_per_s": _SCALARS,
        "run": _SCALARS,
        "config": st.none() | st.fixed_dictionaries({"run": _SCALARS}),
    },
).map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode())
_STATUS = st.fixed_dictionaries(
    {"state": _NAME | st.sampled_from(["failed", "running"])}, optional={"error": st.text()}
)
_DONE = st.fixed_dictionaries(
    {},
    optional={
        "step": st.integers(0, 2**62),
        "epoch": st.floats(0, 1e308),
        "top1": st.floats(0, 1),
        "elapsed_s": st.floats(0, 1e308),
        "reason": st.text(max_size=5),
        "hash": st.text(max_size=5),
    },
)
_PROVENANCE = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("engine", "hash", "data_fingerprint", "time", "host"), st.text(max_size=5)),
        "num_ranks": st.integers(0, 2**31),
        "resumed_from_step": st.integers(0, 2**62),
        "gpus": st.lists(st.text(max_size=3), max_size=2),
        "git": st.none() | st.fixed_dictionaries({"commit": st.text(max_size=3), "dirty": st.booleans()}),
    },
)
_LIKELY = {"status.json": _STATUS, "DONE.json": _DONE, "attempts/000/provenance.json": _PROVENANCE}
_LIKELY = {name: fields.map(lambda value: json.dumps(value).encode()) for name, fields in _LIKELY.items()}
_LIKELY["config.yaml"] = _JOBS
_CONTENTS = _YAML | _JSON | _ODD | st.binary(max_size=50) | _spoilt(_YAML) | _spoilt(_JSON)
_PLACES = st.sampled_from(["absent", "pipe", "folder", "dangling", "loop"]) | _CONTENTS
_NAMES = (
    st.binary(min_size=1, max_size=12)
    .filter(lambda name: name not in (b".", b"..", b"good"))
    .map(lambda name: os.fsdecode(name.replace(b"/", b"_").replace(b"\0", b"_")).lstrip(".") or "bad")
)
_NUMBERS = st.sampled_from([0, 1, 7, -1, 2**31, 2**62, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1)
_MEASURES = st.floats() | st.sampled_from([0.5, 1e300, -1e300, 1e-300, float("inf"), float("nan")])
_ROWS = st.lists(st.tuples(_NUMBERS, _NUMBERS, _NUMBERS, _MEASURES, _MEASURES), max_size=4)
EXAMPLES = st.fixed_dictionaries(
    {
        "name": _NAMES,
        "files": st.fixed_dictionaries(
            {name: st.one_of(_LIKELY[name], _LIKELY[name], _LIKELY[name], _PLACES) for name in FILES}
        ),
        "rank": st.sampled_from([0, 0, 0, 1, -1, 2**31, 2**40]),
        "start": st.sampled_from([0, 0, 0, 3, -1, 2**62, 2**63 - 1]),
        "rows": _ROWS,
        "sweep": st.none() | _CONTENTS | _VALUES.map(lambda value: json.dumps({"runs": value}).encode()),
        "also": st.sampled_from(["", "", "text", "text", "figures", "export", "page"]),
    }
)


def _place(path: Path, content: bytes | str) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "pipe":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    elif content == "dangling":
        path.symlink_to("nowhere")
    elif content == "loop":
        path.symlink_to(path.name)


def _write_log(path: Path, example: dict) -> None:
    """A log of rows that no run would write."""
    with RunLog(path, {"rank": example["rank"], "attempt": 0, "resumed_from_step": example["start"]}) as log:
        for table in ("steps", "evals", "plans"):
            rows = np.zeros(len(example["rows"]), DTYPES[table])
            for place, (step, client, size, number, other) in enumerate(example["rows"]):
                for name in DTYPES[table].names:
                    kind = DTYPES[table][name].kind
                    rows[place][name] = {"i": size, "f": number, "S": b"test"}[kind]
                rows[place]["step"] = step
                if table != "evals":
                    rows[place]["client"] = client
                else:
                    rows[place]["top1"] = other
            # A row of zeros is a hole.
            log.extend(table, rows[[bool(row.tobytes().strip(b"\0")) for row in rows]])


def test_run_folder(tmp_path):
    root = tmp_path / "runs"
    two_client_run(root / "good", num_steps=20)
    make_old(root)
    keep = load(root)
    honest = {name: getattr(keep, name).lazy().collect() for name in ("steps", "evals", "plans", "events")}
    # Kept by name, as keys of other folders are of another type.
    honest = {name: frame.drop("run").sort(pl.all()) for name, frame in honest.items()}

    def check(example: dict) -> None:
        bad = root / example["name"]
        attempt = bad / "attempts" / "000"
        attempt.mkdir(parents=True)
        try:
            for name, content in example["files"].items():
                _place(bad / name, content)
            _write_log(attempt / "rank00000.h5", example)
            if example["sweep"] is not None:
                (root / "sweep.json").write_bytes(example["sweep"])
            _check_all(example)
        finally:
            shutil.rmtree(bad)
            shutil.rmtree(root / "tables", ignore_errors=True)
            (root / "sweep.json").unlink(missing_ok=True)

    def _check_all(example: dict) -> None:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            # Of numbers that no run has.
            warnings.simplefilter("ignore", RuntimeWarning)
            frames = load_some(root)
            report = make_report(frames)
            print_json(report)
            if example["also"] == "text":
                print_report(report)
                print_report(make_report(frames, target=0.5), "markdown")
                print_paper(compare_with_paper(frames, "table1"))
            elif example["also"] == "figures":
                figure_rows(frames)
            elif example["also"] == "page":
                page(report)
            watch(root, once=True)
            if example["also"] == "export":
                written = export(frames, root / "tables", "csv")
                assert len(written) == 8
        text = out.getvalue()
        decoder = json.JSONDecoder(parse_constant=_refuse)
        rows = {row["run"]: row for row in decoder.raw_decode(text)[0]}
        good = rows["good"]
        assert (good["state"], good["complete"], good["top1"], good["steps"]) == ("done", True, 0.71234, 20)
        assert good["problems"] == []
        for name, frame in honest.items():
            found = getattr(frames, name).lazy().filter(pl.col("run").cast(pl.String) == "good").collect()
            assert found.drop("run").sort(pl.all()).equals(frame, null_equal=True), name
        key = printable(example["name"])
        # What is found at all is a row; what is wrong with it is said in lines of text.
        if example["files"]["config.yaml"] not in ("absent", "folder"):
            assert key in rows
        assert all(line.isprintable() for row in rows.values() for line in row["problems"])
        assert CACHE_FOLDER not in text

    assert fuzz(EXAMPLES, check, at_once=10) > 0


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} in JSON")
