"""A run's trained net, built from its job and filled from its files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from hpclbfl.api.own_torch import kept_torch_state
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.loaders import data_spec, make_loader
from hpclbfl.data.sampling import make_sampler
from hpclbfl.runs.fingerprint import read_job
from hpclbfl.sharpness.model import load_state
from hpclbfl.sharpness.source import find_source
from hpclbfl.training import build

logger = Diagnostics(__name__)


def load_model(path: Path) -> nn.Module:
    """Return the net of a finished run, else that of its newest checkpoint, where clients' models are averaged.

    Raises:
        ConfigError: there is neither, or the run's job is not valid.
        DataError: its files are damaged, or the data set is not there.
    """
    source = find_source(path)
    job = read_job(source.folder)
    host, comm = torch.device("cpu"), LocalCommunicator()
    dataset = load_dataset(job.data.without_download())
    loader = make_loader(dataset.train, job.data, job.seed, host, build.dtype(job))
    loader.close()
    with kept_torch_state():
        net = build.net(job, data_spec(dataset, loader), host)
    num_clients = len(job.local_batch_sizes())
    sampler = make_sampler(job.partition, dataset.train, num_clients, dataset.num_classes, job.seed)
    net, _, problems = load_state(net, source, job, sampler.capacity, comm)
    for line in problems:
        logger.warning(f"warning: passed over: {line}")
    return net.eval()
