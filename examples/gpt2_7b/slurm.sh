#!/usr/bin/env bash
#SBATCH --job-name=gpt2_7b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@300
#SBATCH --requeue
# Saves and stops five minutes before the time limit; `checkpoint.load: auto` in run.yaml resumes,
# in whatever stage the run is.
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 \
  --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
  pretrain_progressive.py --config examples/gpt2_7b/run.yaml "$@"
