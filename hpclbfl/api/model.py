"""A run's trained net, built from its job and filled from its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from hpclbfl.api.own_torch import kept_torch_state
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.loader import Loader
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
    dataset = load_dataset(job.data.model_copy(update={"download": False}))
    images = Loader(dataset.train, job.data, train=True, seed=job.seed, device=host, dtype=build.dtype(job))
    images.close()
    with kept_torch_state():
        net = build.net(job, len(dataset.classes), images.image_shape, host)
    labels, num_clients = np.asarray(dataset.train.labels), len(job.local_batch_sizes())
    sampler = make_sampler(job.partition, labels, num_clients, len(dataset.classes), job.seed)
    net, _, problems = load_state(net, source, job, sampler.capacity, comm)
    for line in problems:
        logger.warning(f"warning: passed over: {line}")
    return net.eval()
