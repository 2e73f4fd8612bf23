#!/usr/bin/env bash
# A training on the nodes of a Slurm job; the same command after a requeue goes on from the last checkpoint. From the repository's root:
#   sbatch --nodes=2 docker/cluster/slurm.sh recipes/research/gpu.yaml --run-dir /shared/runs/research
# RETRIEVAL_URL, DATA_DIR and, where the service wants it, RETRIEVAL_TOKEN are taken from where sbatch is called.
#SBATCH --job-name=research-rl
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
: "${RETRIEVAL_URL:?the URL of the retrieval service, which every node must reach}"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# without a token, whoever reaches Ray's port runs what he likes
RAY_AUTH_TOKEN=$(openssl rand -hex 32)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export NNODES=$SLURM_JOB_NUM_NODES RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
srun --kill-on-bad-exit=1 ray symmetric-run --address "$head:6379" --min-nodes "$NNODES" -- python -m research_rl.train "$@"
