"""A real Slurm on one machine, thrown away after use: for tests, and for trying out a sweep.

It lives in a folder and on ports of its own, and touches no Slurm that is already there: whoever wants to talk to it
sets SLURM_CONF. See `python -m hpclbfl.slurm.devcluster --help`.
"""
