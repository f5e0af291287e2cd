#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --job-name=demo
#SBATCH --nodes=1
#SBATCH --ntasks=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/scratch/demo/slurm/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=B:USR2@120

# command
export SUBMITIT_EXECUTOR=slurm
exec /env/bin/python -u /env/hpclbfl/launch/entry/run_module.py -u -m submitit.core._submit /scratch/demo/slurm
