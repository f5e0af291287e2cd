"""Jobs in a script or a notebook: build, train, look at the tables, draw a figure. Takes half a minute on two cores."""

import logging
import sys
from pathlib import Path

import polars as pl

import hpclbfl

# Nothing is printed unless you ask: how far a run is goes to the logger "hpclbfl".
logging.basicConfig(level=logging.INFO, format="%(message)s")
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/from-python")

results = {}
for kind in ("bsp", "fedavg"):
    job = hpclbfl.make_job(
        name=kind,
        clients=4,
        data={"name": "digits"},
        model={"name": "resnet8"},
        sync={"kind": "bsp"} if kind == "bsp" else {"kind": "fedavg", "local_steps": 5},
        batching={"local_batch_size": 32},
        stop={"epochs": 1},
    )
    # Or from a file: hpclbfl.load_job("jobs/quickstart.yaml", {"optimizer.lr": 0.05})
    try:
        results[kind] = hpclbfl.run(job, run_dir=folder / kind)
    except hpclbfl.HpclbflError as error:
        sys.exit(f"{kind}: {error}")

for kind, result in results.items():
    loss = result.steps.group_by("step", maintain_order=True).agg(pl.col("loss").mean())["loss"]
    print(f"{kind}: top-1 {result.top1:.3f}, loss {loss[0]:.2f} to {loss[-1]:.2f} in {len(loss)} steps")

# A torch module, and a folder that can be read again later.
print(sum(parameter.numel() for parameter in results["bsp"].model.parameters()), "parameters")
print(hpclbfl.read_run(folder / "bsp").evals)

# All runs of a folder at once; in a notebook the chart shows itself.
runs = hpclbfl.load_runs(folder)
print(hpclbfl.summarise(runs).select("run", "sync", "top1", "samples_per_s"))
hpclbfl.plot(runs, "learning_curves_samples", file=folder / "accuracy.png")
