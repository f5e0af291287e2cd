"""The fake Slurm, for locks that ask it whether a job lives."""

from tests.slurm.conftest import fake_slurm as fake_slurm
