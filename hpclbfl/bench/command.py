"""`hpclbfl bench NAME`: finds the benchmark, checks its options, runs it, writes and prints the findings."""

from __future__ import annotations

import importlib
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hpclbfl.bench import report
from hpclbfl.bench.turns import Turns
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.files import prepare_output, write_output
from hpclbfl.core.text import say

logger = Diagnostics(__name__, title="")

BENCHMARKS = ("comm", "step", "federated", "scaler", "input", "log", "hetero", "gradients", "compression")
"""Each is a module of this folder with `VARIANTS`, `Settings` and `measure`, and `draw` where there is a figure."""
OPTIONS = {"num_ranks": "-np"}
"""Settings whose option is not `--` and their name."""


def run(name: str, options: dict[str, Any], out: Path | None, as_json: bool, debug: bool) -> None:
    """Run one benchmark.

    Args:
        options: settings by name; None where not given.
        out: the file to write; None: see `report.default_path`.

    Raises:
        ConfigError: an unknown benchmark or variant, or an option that the benchmark does not have.
        EnvironmentFault: the file cannot be written, or there is no MPI.
        RunFailed: a rank failed.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"bench {name}: unknown benchmark; there are {', '.join(BENCHMARKS)}")
    module: Any = importlib.import_module(f"hpclbfl.bench.{name}")
    known = [field.name for field in fields(module.Settings)]
    given = {key: value for key, value in options.items() if value is not None}
    flags = {key: OPTIONS.get(key, f"--{key}") for key in options}
    for key in given:
        if key not in known:
            takes = ", ".join(flag for option, flag in flags.items() if option in known)
            raise ConfigError(f"bench {name}: {flags[key]} does not go with it; it takes {takes}")
    for mb in given.get("mb", ()):
        if not mb > 0:
            raise ConfigError(f"bench {name}: --mb {mb:g}: a size is above 0")
    for variant in given.get("variants", ()):
        if variant not in module.VARIANTS:
            known_variants = ", ".join(module.VARIANTS)
            raise ConfigError(f"bench {name}: --variants: unknown '{variant}'; there are {known_variants}")
    path = out or report.default_path(name)
    prepare_output(path)
    settings = module.Settings(**given)
    with Turns(name) as turns:
        findings = module.measure(settings, turns, debug)
    text = report.as_text(report.document(name, asdict(settings), findings))
    write_output(path, text.encode())
    if (draw := getattr(module, "draw", None)) is not None:
        draw(findings, path.with_suffix(".png"))
    if as_json:
        # Standard output is the document alone.
        sys.stdout.write(text)
        logger.info(path)
    else:
        report.print_tables(findings)
        say(path, sys.stdout)
        if draw is not None:
            say(path.with_suffix(".png"), sys.stdout)
