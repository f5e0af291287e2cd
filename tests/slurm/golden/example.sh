#!/bin/bash

# Parameters
#SBATCH --account=my-project
#SBATCH --array=0-2%3
#SBATCH --constraint='[a100*1&v100*1]'
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --job-name=demo
#SBATCH --mem=64G
#SBATCH --nodes=2
#SBATCH --ntasks=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/scratch/demo/slurm/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
#SBATCH --time=240

# setup
module load gcc/12.3 openmpi/4.1
export NCCL_SOCKET_IFNAME=ib0

# command
export SUBMITIT_EXECUTOR=slurm
exec /env/bin/python -u /env/hpclbfl/launch/entry/run_module.py -u -m submitit.core._submit /scratch/demo/slurm
