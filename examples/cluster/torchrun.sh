#!/usr/bin/env bash
#SBATCH --job-name=megatron_grow
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# One torchrun on each host, which starts a process for each of its GPUs:
#
#   sbatch examples/cluster/torchrun.sh RUN_FILE OUTPUT_DIR [--train.train_iters 500 ...]
#
# Five minutes before the time limit SLURM asks the run to stop. It saves and goes back into the
# queue, and resumes in whatever stage it is. A process that is killed restarts the run twice before
# the job fails. docs/cluster.md says what else to set.
set -euo pipefail
run_file=$1 output=$2
shift 2
# The host network; which one it is, `ip -brief address` says on a host.
if [ -n "${INTERFACE:-}" ]; then
  export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
fi
# srun gives a task one CPU unless it is told again.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# torchrun kills its processes so many seconds after it was asked to stop; its default is 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=270
# A new store for each attempt: agents on several hosts do not count attempts alike.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
trap : TERM  # a preempted job sends it here too, and this script must outlive the save
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((15000 + SLURM_JOB_ID % 10000))  # two jobs may share a host
rm -f "$output/status.json"
code=0
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --max-restarts 2 \
  --rdzv-backend c10d --rdzv-endpoint "$head:$port" --rdzv-id "$SLURM_JOB_ID" \
  pretrain_progressive.py --config "$run_file" --run.output_dir "$output" --checkpoint.load auto \
  "$@" || code=$?
# torchrun exits with 1 for a run that stopped as asked, diverged or failed; the run says which.
if grep -qs '"status": "stopped"' "$output/status.json"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
