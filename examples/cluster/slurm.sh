#!/usr/bin/env bash
# A Ray cluster on the nodes of a SLURM job, and a run on it.  A job that is submitted again continues the run.
#
#   sbatch slurm.sh FOLDER ENV [KEY=VALUE]...
#   sbatch slurm.sh runs/lander LunarLander-v3 ray.workers=64 env.num_envs=64
#
# FOLDER is on a file system that all nodes see.  bircher[ray] is installed on each, in the environment that is active
# when the job is submitted.  This script, the learner and the head of the cluster are on the first node.
#SBATCH --job-name=bircher
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
set -euo pipefail

folder=$1
shift
port=${BIRCHER_RAY_PORT:-6379}

# Whoever does not know the token is refused.  Other users cannot read its file.
umask 077
mkdir -p "$(dirname "$folder")"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID"
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"
trap 'kill $(jobs -p) 2>/dev/null || true; rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

# Ray gives its workers the lowest priority but four, also on nodes that do nothing else.
export RAY_worker_niceness=0

address=$(hostname --ip-address | awk '{print $1}')
ray start --head --block --node-ip-address="$address" --port="$port" --num-cpus="$SLURM_CPUS_PER_TASK" \
    --include-dashboard=false --disable-usage-stats &
until ray status --address="$address:$port" >/dev/null 2>&1; do
    sleep 2
done
others=$((SLURM_JOB_NUM_NODES - 1))
if ((others)); then
    srun --nodes="$others" --ntasks="$others" --exclude="$SLURMD_NODENAME" \
        ray start --block --address="$address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats &
fi

if [[ -f $folder/config.yaml ]]; then
    words=(--resume "$folder")
else
    words=("$@" loop=ray --out "$folder")
fi
bircher train "${words[@]}" ray.address="$address:$port" &
run=$!
# Two minutes before the end SLURM signals this shell.  The run saves and ends.
trap 'kill -TERM "$run"' USR1
status=0
wait "$run" || status=$?
if kill -0 "$run" 2>/dev/null; then # the signal ended the first wait
    status=0
    wait "$run" || status=$?
fi
exit "$status"
