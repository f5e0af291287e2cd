"""Probes, each in its own process: `python -m hpclbfl.planner.probe` reads a request from stdin and prints an answer.

A fresh process starts with as little memory as a run does, and may run out of memory without ending the planner.
Requests and answers are JSON objects; the answer is the line that begins with `MARK`.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpclbfl.batching.plan_file import device_name
from hpclbfl.config.job import JobConfig, parse_job
from hpclbfl.config.own_sources import remember
from hpclbfl.config.sections import ImageDataConfig
from hpclbfl.core.errors import HpclbflError
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.loaders import make_loader
from hpclbfl.planner.compute import SMALLEST, batch_ladder
from hpclbfl.planner.measure import Bench, anonymous, resident
from hpclbfl.planner.runner import MARK, Gathered

_SCOUT = 8
"""The first batch size that is tried."""
_ROOM = 1.5
"""Upper bound on the peak of a step over what it saves for the backward pass; for guesses that must not run out of
memory."""
_BUFFER_SAMPLES = 256
_MOST_ROUNDS = 8
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a mem",
    # Of the GPU's libraries, which allocate their work space outside torch.
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "unable to find an engine",
)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Carry out a request in this process.

    Args:
        request: `kind` (times, peak or batches), `job`, `local_rank`, `local_size`, `sharing` (number of ranks on its
            GPU), and the arguments of the kind.

    Returns:
        The answer, or `out_of_memory: true`.
    """
    for place, text in request.get("parts", ()):
        remember(text.encode("utf-8", "surrogateescape"), Path(place))
    job = parse_job(request["job"], "the job")
    kinds = {"times": times, "peak": peak, "batches": batches}
    try:
        return kinds[request["kind"]](job, request)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return {"out_of_memory": True}


def times(job: JobConfig, request: dict[str, Any]) -> dict[str, Any]:
    """Time steps of many batch sizes, and count the components of Eq. 3.

    Request: `budget_s` for all of it, `min_rounds` regardless of the budget, `limit_bytes`, `min_top` (batch size up to
    which longer steps are accepted).

    Answer: the fields of `Gathered`.
    """
    bench = Bench(job, request["local_rank"], request["local_size"])
    is_gpu = bench.device.type == "cuda"
    host_bytes = resident()
    free_bytes = 0
    if is_gpu:
        # For each of the ranks that share it, with what this process has reserved.
        free_bytes = torch.cuda.mem_get_info(bench.device)[0] + torch.cuda.memory_reserved(bench.device)
        free_bytes //= request["sharing"]
    limit_bytes = int(request["limit_bytes"] or free_bytes)
    _limit_gpu(bench.device, limit_bytes)
    budget_s = request["budget_s"]
    top = _top(bench, budget_s / 15, limit_bytes, request["min_top"])
    fitted, held_out = batch_ladder(top)
    sizes = sorted({*fitted, *held_out})
    order = random.Random(0)
    rows: list[tuple[int, int, float, float]] = []
    activation: dict[int, int] = {}
    counted: dict[str, int] = {}
    begin, repetitions = time.perf_counter(), dict.fromkeys(sizes, 0)
    # In turns, so that a machine that is busy for a while does not distort a single batch size.
    for number in range(_MOST_ROUNDS):
        # The next round is expected to take as long as the earlier ones.
        if number >= request["min_rounds"] and (time.perf_counter() - begin) * (number + 1) / number >= budget_s:
            break
        for batch in order.sample(sizes, len(sizes)):
            # The first step after one of another size allocates memory anew and is not timed.
            started = time.perf_counter()
            if number == 0:
                counted = bench.account(batch)
                activation[batch] = counted.pop("activation")
            else:
                bench.step(batch)
            warm_s = time.perf_counter() - started
            for _ in range(int(np.clip(budget_s / 40 / warm_s, 2, 8))):
                t_mov, t_c = bench.step(batch)
                rows.append((batch, repetitions[batch], t_mov, t_c))
                repetitions[batch] += 1
    parameters, buffers = bench.state.mean.parameters, bench.state.mean.buffers
    train = bench.state.train
    found = Gathered(
        device=device_name({"OMPI_COMM_WORLD_LOCAL_RANK": str(request["local_rank"])}),
        threads=None if is_gpu else torch.get_num_threads(),
        free_bytes=free_bytes,
        num_train=bench.num_train,
        fingerprint=bench.fingerprint,
        input_bytes=train.staged_bytes // 2,
        sample_text=train.sample_text,
        in_memory=train.in_memory,
        missing_bytes=0 if is_gpu else bench.missing_bytes,
        host_bytes=host_bytes,
        start_bytes=0 if is_gpu else host_bytes,
        shapes=[tuple(p.shape) for p in parameters if p.requires_grad],
        itemsize=parameters[0].element_size(),
        buffer_bytes=buffers.numel() * buffers.element_size(),
        rows=rows,
        fitted=fitted,
        held_out=held_out,
        activation=list(activation.items()),
        **counted,
    )
    return asdict(found)


def peak(job: JobConfig, request: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of whole steps. Request: `batch`, `num_steps`, `num_clients`, `limit_bytes`."""
    bench = Bench(job, request["local_rank"], request["local_size"], request["num_clients"])
    if request["limit_bytes"] is not None:
        _limit_gpu(bench.device, request["limit_bytes"])
    peak_bytes, seconds = bench.peak_of(request["batch"], request["num_steps"])
    return {"peak_bytes": peak_bytes, "seconds": seconds}


def batches(job: JobConfig, request: dict[str, Any]) -> dict[str, Any]:
    """Memory of loading, M_batch of Eq. 3: by how much batches increase the memory of a fresh process, or of a GPU.

    Request: `batches`, pairs of batch size and repetition, in order; `in_memory`. Answer: `rows` of batch, repetition
    and bytes.
    """
    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda", request["local_rank"] % torch.cuda.device_count()) if is_gpu else torch.device("cpu")
    split = load_dataset(job.data.without_download()).train
    split = split.subset(np.arange(min(_BUFFER_SAMPLES, len(split))))
    config = job.data
    if isinstance(config, ImageDataConfig):
        config = config.model_copy(update={"in_memory": request["in_memory"]})
    dtype = torch.float64 if job.precision == "float64" else torch.float32
    gray = (0.5, 0.5, 0.5)
    rows = []
    # The first one is not counted: it reuses memory that the imports have freed.
    for batch, repetition in [(request["batches"][0][0], -1), *request["batches"]]:
        loader = make_loader(split, config, 0, device, dtype, (gray, gray))
        samples = np.arange(batch, dtype=np.int64) % len(split)
        passes = np.arange(batch, dtype=np.int64) // len(split)
        _release_free_memory()
        before = _in_use(device)
        # As in training: while one batch is used, the next one is loaded into the other buffer.
        loader.batch(samples, passes)
        loader.prefetch(samples, passes)
        loaded = loader.batch(samples, passes)
        if repetition >= 0:
            rows.append((batch, repetition, _in_use(device) - before))
        del loaded
        loader.close()
    return {"rows": rows}


def _top(bench: Bench, most_s: float, limit_bytes: int, min_top: int) -> int:
    """The largest power of two whose step takes `most_s` at most (or four times a small one's), within memory."""
    saved = bench.account(_SCOUT)["activation"] / _SCOUT
    before_s = last_s = min(sum(bench.step(_SCOUT)) for _ in range(2))
    most_s = max(most_s, 4 * last_s)
    used = torch.cuda.memory_allocated(bench.device) if bench.device.type == "cuda" else resident()
    batch = _SCOUT
    while 2 * batch <= bench.num_train and used + _ROOM * saved * 2 * batch < limit_bytes:
        # Extrapolated from the last two batch sizes.
        next_s = last_s + 2 * max(0.0, last_s - before_s)
        if next_s > (most_s if 2 * batch > min_top else 4 * most_s):
            break
        batch *= 2
        before_s, last_s = last_s, sum(bench.step(batch))
    return max(batch, SMALLEST)


def _limit_gpu(device: torch.device, limit_bytes: int) -> None:
    """Make the allocator fail where that of a smaller GPU would; on a CPU the parent process watches."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), device)


def _in_use(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else anonymous()


def _release_free_memory() -> None:
    """Return freed memory to the kernel, so that it counts again when it is reused."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def main() -> None:
    """Entry point of the process."""
    request = json.load(sys.stdin)
    try:
        found = answer(request)
    except HpclbflError as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
