#!/bin/bash
# Trains on SLURM nodes, one process per node with all its GPUs, and requeues the job when it is interrupted.
#
#   sbatch launch/slurm.sh --config=configs/sky_timelapse.py --workdir=$SCRATCH/runs/sky \
#     --config.data.path=$SCRATCH/sky_videos --config.vae=$SCRATCH/sd-vae-ft-ema
#
# Submit it from the repository root. Arguments are those of train.py; --workdir and the data must be on a file system
# that all nodes share. PYTHON names another Python than the one of `make install`.
#SBATCH --job-name=vdt
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=vdt-%j.log

code=0
srun --kill-on-bad-exit=0 "${PYTHON:-.venv-3.11/bin/python}" train.py "$@" || code=$?
if [ "$code" -eq 75 ]; then # interrupted and saved: the next start resumes
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
