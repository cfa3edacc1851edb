#!/usr/bin/env bash
#SBATCH --job-name=megatron_grow
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# One task for each GPU, without torchrun:
#
#   sbatch examples/cluster/srun.sh RUN_FILE OUTPUT_DIR [--train.train_iters 500 ...]
#
# Ranks, their GPUs, the first host and a port follow from SLURM's variables. Ask for GPUs by host,
# not by task: a process that sees the others' GPUs too is faster with them. As torchrun.sh beside
# it, but for restarts: a process that is killed ends the job, which is then started by hand.
set -euo pipefail
run_file=$1 output=$2
shift 2
if [ -n "${INTERFACE:-}" ]; then
  export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
fi
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
trap : TERM
rm -f "$output/status.json"
code=0
srun --kill-on-bad-exit=1 python pretrain_progressive.py --config "$run_file" \
  --run.output_dir "$output" --checkpoint.load auto "$@" || code=$?
if [ "$code" = 75 ] || grep -qs '"status": "stopped"' "$output/status.json"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
