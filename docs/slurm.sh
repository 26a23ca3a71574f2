#!/bin/bash
# An evaluation on two machines with four GPUs each: a process for each GPU, which share the samples.
#
#     sbatch docs/slurm.sh
#     KV_MODE=l2 KEEP_RATIO=0.5 sbatch docs/slurm.sh longbench_kv_eval.py
#
# Submit from the project's root, with the Python environment active: sbatch hands the variables of
# the shell on. LOGDIR must be a folder that all machines share, as the default is where the project
# is. A job that was ended early goes on when it is submitted again.
#SBATCH --job-name=longctx
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

export RESUME=1 SKIP_DONE=1
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))

machines=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))

srun torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc_per_node="$SLURM_GPUS_ON_NODE" \
    --rdzv_backend=c10d \
    --rdzv_id="$SLURM_JOB_ID" \
    --rdzv_endpoint="${machines[0]}:$((20000 + SLURM_JOB_ID % 10000))" \
    "${1:-narrativeqa_eval.py}"
