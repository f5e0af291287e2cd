"""`hpclbfl sharpness` on one rank: alone, or with all others in the MPI job that it finds itself in."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.comm.base import Communicator
from hpclbfl.config.job import JobConfig
from hpclbfl.config.part_names import brief
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import ConfigError, DataError, RunFailed
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.loaders import data_spec, make_loader
from hpclbfl.data.sampling import make_sampler
from hpclbfl.runs.fingerprint import read_job
from hpclbfl.sharpness.eigenpairs import Eigenpair, top_eigenpairs
from hpclbfl.sharpness.lanczos import Product, random_vector
from hpclbfl.sharpness.model import load_state
from hpclbfl.sharpness.options import VECTORS, Options
from hpclbfl.sharpness.product import DistributedProduct, LossHessian, parameters_of
from hpclbfl.sharpness.report import Result, as_json, print_result
from hpclbfl.sharpness.source import Source, find_source
from hpclbfl.sharpness.spectrum import Spectrum, mean_and_error, quadrature, resolution
from hpclbfl.sharpness.store import FILE_NAME, Tables, empty_tables, rows_of, save_sharpness
from hpclbfl.training import build
from hpclbfl.training.evaluate import share_of_rank
from hpclbfl.training.failure import fail
from hpclbfl.training.footprint import Footprint, measure

logger = Diagnostics(__name__, "sharpness")

_SAMPLES, _EIGENPAIRS, _SPECTRUM = 0, 1, 2
"""What random numbers are drawn for; keys them with the seed."""
_SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class _Problem:
    """What all ranks hold."""

    product: DistributedProduct
    like: Tensor
    footprint: Footprint
    step: int
    num_samples: int
    num_train: int


def run_sharpness(run: Path, options: Options, print_json: bool = False, debug: bool = False) -> None:
    """Find the eigenvalues, write sharpness.h5 into the run's folder, print from rank 0.

    Does not return if this rank fails.
    """
    source = find_source(run)
    job = read_job(source.folder)
    comm = build.communicator(job.comm)
    try:
        result = _measure(source, job.resolved(comm.size), comm, options)
        if result is not None:
            if print_json:
                sys.stdout.write(as_json(result) + "\n")
            else:
                print_result(result, comm.size)
    # A rank that ended by itself would leave the others waiting for it, whatever the reason.
    except BaseException as error:
        fail(comm, error, debug)
    comm.close()


def choose_samples(num_train: int, count: int, seed: int) -> NDArray[np.int64]:
    """Places of `count` training samples, rising, no image twice; all where there are no more."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _SAMPLES])))
    return np.sort(rng.permutation(num_train)[:count]).astype(np.int64)


def _measure(source: Source, job: JobConfig, comm: Communicator, options: Options) -> Result | None:
    begin = time.monotonic()

    def say(line: str) -> None:
        if comm.rank == 0:
            tell = logger.warning if line.startswith("warning: ") else logger.info
            tell(f"{time.monotonic() - begin:4.0f} s: {line}")

    problem = _problem(source, job, comm, options, say)
    if comm.rank:
        problem.product.serve()
        return None
    say(f"step {problem.step}: {len(problem.like):,} parameters, {problem.num_samples} training samples")
    if options.top > len(problem.like):
        raise ConfigError(f"--top {options.top}: the Hessian has {len(problem.like)} eigenvalues, one per parameter")
    held, size = options.held_vectors(len(problem.like)), len(problem.like) * problem.like.element_size()
    problem.footprint.check_vectors(held, size)
    product = _Progress(say).counting(problem.product)
    start = partial(_start, problem.like, options.seed)
    pairs = top_eigenpairs(
        product,
        lambda index: start(_EIGENPAIRS, index),
        options.top,
        options.tolerance,
        options.iterations,
        options.basis,
        lambda value, count: say(f"eigenvalue {value:.4g}, {count} products"),
    )
    for index, pair in enumerate(pairs):
        if not pair.has_settled:
            say(
                f"warning: eigenvalue {index} has not settled: residual {pair.residual:.2g} after {pair.iterations} "
                "products; give more --iterations"
            )
    spectrum = None
    if options.lanczos is not None:
        count, seen = options.vectors or VECTORS, []
        for vector in range(count):
            seen.append(quadrature(product, start(_SPECTRUM, vector), options.lanczos))
            say(f"spectrum: {vector + 1} of {count} start vectors, {len(seen[-1].values)} Ritz values")
        spectrum = Spectrum(tuple(seen), len(problem.like), resolution(problem.like.dtype))
    problem.product.close()
    path = source.folder.path / FILE_NAME
    save_sharpness(path, _tables(problem, options, pairs, spectrum), problem.step, _attributes(source, job))
    return Result(
        run=source.folder.path,
        path=path,
        title=f"{brief(job.model.name)} on {job.data.title}",
        step=problem.step,
        num_parameters=len(problem.like),
        num_samples=problem.num_samples,
        num_train=problem.num_train,
        seed=options.seed,
        pairs=pairs,
        spectrum=spectrum,
        seconds=time.monotonic() - begin,
    )


def _problem(
    source: Source, job: JobConfig, comm: Communicator, options: Options, say: Callable[[str], None]
) -> _Problem:
    device = build.device(comm)
    dtype = build.dtype(job)
    dataset = load_dataset(job.data, is_downloader=comm.local_rank == 0, wait=comm.barrier)
    if source.data_fingerprint and source.data_fingerprint != dataset.fingerprint:
        raise DataError(f"{job.data.place}: no longer holds the data that {source.folder.path} was trained on")
    loader = make_loader(dataset.train, job.data, job.seed, device, dtype)
    data = data_spec(dataset, loader)
    net = build.net(job, data, device)
    num_clients = len(job.local_batch_sizes())
    sampler = make_sampler(job.partition, dataset.train, num_clients, dataset.num_classes, job.seed)
    net, step, problems = load_state(net, source, job, sampler.capacity, comm)
    for line in problems:
        say(f"warning: passed over: {line}")
    samples = choose_samples(len(dataset.train), options.samples, options.seed)
    share = samples[share_of_rank(len(samples), comm)]
    footprint = replace(measure(net, loader, build.autocast(job, device)), local_size=comm.local_size)
    like = torch.zeros(sum(p.numel() for p in parameters_of(net)), dtype=dtype, device=device)
    reserved = options.held_vectors(len(like)) * len(like) * like.element_size()
    batch = footprint.product_batch(min(options.batch, max(1, len(share))), reserved)
    batches = []
    for first in range(0, len(share), batch):
        places = share[first : first + batch]
        batches.append(loader.batch(places, np.zeros_like(places), augment=False))
    loader.close()
    loss = build.loss(job, data)
    num_terms = sum(comm.allgather(sum(loss.count(targets) for _, targets in batches)))
    product = DistributedProduct(LossHessian(net, batches, max(1, num_terms), loss), comm, like)
    return _Problem(product, like, footprint, step, len(samples), len(dataset.train))


def _start(like: Tensor, seed: int, *key: int) -> Tensor:
    return random_vector(len(like), like.dtype, like.device, seed, *key)


class _Progress:
    """A line now and then about how many products are done."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._count, self._last = say, 0, time.monotonic()

    def counting(self, product: Product) -> Product:
        """The same product, counted."""

        def counted(vector: Tensor) -> Tensor:
            image = product(vector)
            if not bool(torch.isfinite(image).all()):
                raise RunFailed("the Hessian is not finite: this net's training has diverged, it has no sharpness")
            self._count += 1
            if time.monotonic() - self._last >= _SAY_EVERY_S:
                self._last = time.monotonic()
                self._say(f"{self._count} Hessian-vector products")
            return image

        return counted


def _tables(problem: _Problem, options: Options, pairs: list[Eigenpair], spectrum: Spectrum | None) -> Tables:
    tables = empty_tables()
    tables["eigenvalues"] = rows_of(
        "eigenvalues",
        problem.step,
        index=range(len(pairs)),
        eigenvalue=[pair.value for pair in pairs],
        residual=[pair.residual for pair in pairs],
        iterations=[pair.iterations for pair in pairs],
        has_settled=[pair.has_settled for pair in pairs],
        num_samples=problem.num_samples,
        seed=options.seed,
    )
    if spectrum is not None:
        for vector, one in enumerate(spectrum.quadratures):
            rows = rows_of(
                "spectrum",
                problem.step,
                vector=vector,
                index=range(len(one.values)),
                eigenvalue=one.values,
                weight=one.weights,
                residual=one.residuals,
            )
            tables["spectrum"] = np.concatenate([tables["spectrum"], rows])
        parts = spectrum.weights()
        weight, error = mean_and_error(parts.shares)
        places = {"eigenvalue": parts.values, "low": parts.low, "high": parts.high}
        tables["weights"] = rows_of("weights", problem.step, **places, weight=weight, error=error)
        trace, error_of_trace = spectrum.trace()
        tables["trace"] = rows_of(
            "trace", problem.step, trace=trace, error=error_of_trace, vectors=len(spectrum.quadratures)
        )
        if options.with_density:
            tables["density"] = rows_of("density", problem.step, **spectrum.density())
    return tables


def _attributes(source: Source, job: JobConfig) -> dict[str, str]:
    return {
        "hash": source.run_hash,
        "config": job.to_yaml(),
        "loss": "the job's, mean over training samples without augmentation, without weight decay; net in evaluation "
        "mode (BatchNorm's running statistics)",
    }
