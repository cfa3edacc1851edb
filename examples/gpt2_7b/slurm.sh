#!/usr/bin/env bash
#SBATCH --job-name=gpt2_7b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before the time limit SLURM asks the run to stop. It saves and goes back into the
# queue; `checkpoint.load: auto` in run.yaml resumes it, in whatever stage it is.
set -euo pipefail
output=runs/gpt2_7b
# torchrun kills its workers so many seconds after it was asked to stop; its default is 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=270
trap : TERM  # a preempted job sends it here too, and this script must outlive the save
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
rm -f "$output/status.json"
code=0
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 \
  --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
  pretrain_progressive.py --config examples/gpt2_7b/run.yaml --run.output_dir "$output" "$@" \
  || code=$?
# torchrun exits with 1 for a run that stopped as asked, diverged or failed; the run says which.
if grep -qs '"status": "stopped"' "$output/status.json"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
