"""A run's trained net, built from its job and loaded from its files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from hpclbfl.api.own_torch import kept_torch_state
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.data.datasets import load_dataset
from hpclbfl.runs.fingerprint import read_job
from hpclbfl.sharpness.model import trained_net
from hpclbfl.sharpness.source import find_source

logger = Diagnostics(__name__)


def load_model(path: Path) -> nn.Module:
    """Return the net of a finished run, or of the newest checkpoint with the clients' models averaged.

    Raises:
        ConfigError: there is neither, or the run's job is not valid.
        DataError: its files are damaged, or the data set is not there.
    """
    source = find_source(path)
    job = read_job(source.folder)
    dataset = load_dataset(job.data.without_download())
    with kept_torch_state():
        trained = trained_net(source, job, LocalCommunicator(), dataset, torch.device("cpu"), logger.warning)
    trained.loader.close()
    return trained.net.eval()
