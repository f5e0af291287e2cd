"""Large-batch federated and data-parallel training experiments on HPC clusters."""

__version__ = "0.1.0"
