"""A real Slurm on one machine, for tests and for trying out a sweep; removed after use.

It keeps to its own folder and ports and touches no Slurm that is already on the machine. Commands reach it through
SLURM_CONF. See `python -m tests.devcluster --help`.
"""
