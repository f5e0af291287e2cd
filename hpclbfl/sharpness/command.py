"""`hpclbfl sharpness` on one rank: alone, or with the other ranks of the MPI job around it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.comm import devices
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.engines import communicator
from hpclbfl.config.job import JobConfig
from hpclbfl.config.part_names import brief
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import ConfigError, DataError, RunFailed
from hpclbfl.core.precision import autocast_of, dtype_of
from hpclbfl.data.datasets import load_dataset
from hpclbfl.losses.checked import make_loss
from hpclbfl.runs.fingerprint import read_job
from hpclbfl.sharpness.eigenpairs import top_eigenpairs
from hpclbfl.sharpness.lanczos import Product, random_vector
from hpclbfl.sharpness.model import trained_net
from hpclbfl.sharpness.options import VECTORS, Options
from hpclbfl.sharpness.product import DistributedProduct, LossHessian, parameters_of
from hpclbfl.sharpness.report import Result, as_json, print_result
from hpclbfl.sharpness.source import Source, find_source
from hpclbfl.sharpness.spectrum import Spectrum, quadrature, resolution
from hpclbfl.sharpness.store import FILE_NAME, save_sharpness
from hpclbfl.training.evaluate import share_of_rank
from hpclbfl.training.failure import fail
from hpclbfl.training.footprint import Footprint, measure

logger = Diagnostics(__name__, "sharpness")

_SAMPLES, _EIGENPAIRS, _SPECTRUM = 0, 1, 2
"""Purposes of random numbers; keys of their generators, with the seed."""
_SAY_EVERY_S = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Problem:
    """The loss whose Hessian is examined, on every rank."""

    product: DistributedProduct
    like: Tensor
    footprint: Footprint
    step: int
    num_samples: int
    num_train: int


def run_sharpness(run: Path, options: Options, print_json: bool = False, debug: bool = False) -> None:
    """Find the eigenvalues, write sharpness.h5 into the run folder and print from rank 0.

    Does not return if this rank fails.
    """
    source = find_source(run)
    job = read_job(source.folder)
    comm = communicator(job.comm)
    try:
        result = _measure(source, job.resolved(comm.size), comm, options)
        if result is not None:
            if print_json:
                sys.stdout.write(as_json(result) + "\n")
            else:
                print_result(result, comm.size)
    # A rank that just ended, for any reason, would leave the others waiting.
    except BaseException as error:
        fail(comm, error, debug)
    comm.close()


def choose_samples(num_train: int, count: int, seed: int) -> NDArray[np.int64]:
    """Indices of `count` training samples, increasing, without repetition; all where there are fewer."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _SAMPLES])))
    return np.sort(rng.permutation(num_train)[:count]).astype(np.int64)


def _measure(source: Source, job: JobConfig, comm: Communicator, options: Options) -> Result | None:
    """The result on rank 0, None on the others."""
    begin = time.monotonic()

    def say(line: str) -> None:
        if comm.rank == 0:
            write = logger.warning if line.startswith("warning: ") else logger.info
            write(f"{time.monotonic() - begin:4.0f} s: {line}")

    problem = _problem(source, job, comm, options, say)
    if comm.rank:
        problem.product.serve()
        return None
    size, like = len(problem.like), problem.like
    say(f"step {problem.step}: {size:,} parameters, {problem.num_samples} training samples")
    if options.top > size:
        raise ConfigError(f"--top {options.top}: the Hessian has {size} eigenvalues, one per parameter")
    problem.footprint.check_vectors(options.held_vectors(size), size * like.element_size())
    product = _counted(problem.product, say)

    def start(*key: int) -> Tensor:
        return random_vector(size, like.dtype, like.device, options.seed, *key)

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
                f"warning: eigenvalue {index} has not converged: residual {pair.residual:.2g} after {pair.iterations} "
                "products; give more --iterations"
            )
    spectrum = None
    if options.lanczos is not None:
        count, quadratures = options.vectors or VECTORS, []
        for vector in range(count):
            quadratures.append(quadrature(product, start(_SPECTRUM, vector), options.lanczos))
            say(f"spectrum: {vector + 1} of {count} start vectors, {len(quadratures[-1].values)} Ritz values")
        spectrum = Spectrum(tuple(quadratures), size, resolution(like.dtype))
    problem.product.close()
    result = Result(
        run=source.folder.path,
        path=source.folder.path / FILE_NAME,
        title=f"{brief(job.model.name)} on {job.data.title}",
        step=problem.step,
        num_parameters=size,
        num_samples=problem.num_samples,
        num_train=problem.num_train,
        seed=options.seed,
        pairs=pairs,
        spectrum=spectrum,
        seconds=time.monotonic() - begin,
    )
    save_sharpness(result.path, result.tables(options.density), problem.step, _attributes(source, job))
    return result


def _problem(source: Source, job: JobConfig, comm: Communicator, options: Options, say: Say) -> _Problem:
    device = devices.choose(comm)
    dataset = load_dataset(job.data, is_downloader=comm.local_rank == 0, wait=comm.barrier)
    if source.data_fingerprint and source.data_fingerprint != dataset.fingerprint:
        raise DataError(f"{job.data.place}: no longer holds the data that {source.folder.path} was trained on")
    trained = trained_net(source, job, comm, dataset, device, say)
    net, loader = trained.net, trained.loader
    samples = choose_samples(len(dataset.train), options.samples, options.seed)
    share = samples[share_of_rank(len(samples), comm)]
    footprint = replace(measure(net, loader, autocast_of(job.precision, device)), local_size=comm.local_size)
    like = torch.zeros(sum(p.numel() for p in parameters_of(net)), dtype=dtype_of(job.precision), device=device)
    reserved = options.held_vectors(len(like)) * len(like) * like.element_size()
    batch = footprint.product_batch(min(options.batch, max(1, len(share))), reserved)
    batches = []
    for first in range(0, len(share), batch):
        places = share[first : first + batch]
        batches.append(loader.batch(places, np.zeros_like(places), augment=False))
    loader.close()
    loss = make_loss(job, trained.data)
    num_terms = sum(comm.allgather(sum(loss.count(targets) for _, targets in batches)))
    product = DistributedProduct(LossHessian(net, batches, max(1, num_terms), loss), comm, like)
    return _Problem(product, like, footprint, trained.step, len(samples), len(dataset.train))


def _counted(product: Product, say: Say) -> Product:
    """The same product; reports the number of products from time to time, and refuses values that are not finite."""
    count, last = 0, time.monotonic()

    def counted(vector: Tensor) -> Tensor:
        nonlocal count, last
        image = product(vector)
        if not bool(torch.isfinite(image).all()):
            raise RunFailed("the Hessian is not finite: this net's training has diverged, it has no sharpness")
        count += 1
        if time.monotonic() - last >= _SAY_EVERY_S:
            last = time.monotonic()
            say(f"{count} Hessian-vector products")
        return image

    return counted


def _attributes(source: Source, job: JobConfig) -> dict[str, str]:
    return {
        "hash": source.run_hash,
        "config": job.to_yaml(),
        "loss": "the job's, mean over training samples without augmentation, without weight decay; net in evaluation "
        "mode (BatchNorm's running statistics)",
    }
