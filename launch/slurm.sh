#!/bin/sh
# A run on the GPUs of a Slurm cluster. The script submits itself; Slurm then runs it with `--body`.
set -eu

usage() {
    cat <<'USAGE'
usage: launch/slurm.sh [OPTIONS] -- ARGUMENTS OF cl_jax.main

Submits one job: a task per GPU (or per node), joined by jax.distributed. Call it from the checkout,
with the environment active that has cl_jax and jax[cuda]; --workdir must lie on a file system that
all nodes see.

  --nodes N       nodes (default 1)
  --gpus N        GPUs of a node (default 8)
  --per-node      one task per node that holds all its GPUs (default: one task per GPU)
  --cpus N        CPU cores for each GPU (default 8); they read the images
  --time LIMIT    as sbatch takes it (default 24:00:00); the run is asked to save 180 s before, and
                  requeued
  --sbatch WORD   one more word for sbatch, as often as needed:
                  --sbatch=--partition=gpu --sbatch=--account=mine
  --dry-run       print the commands and submit nothing

  launch/slurm.sh --nodes 4 -- \
      --config=configs/simclr_v2.py:imagenet2012 --workdir=/shared/runs/simclr_v2

When the job is preempted or its time is up, Slurm sends SIGTERM, the run saves and ends with status
75, and the job is put back in the queue; it continues at the same step. Any other failure is final.
Output: slurm-<job>.out in this folder.
USAGE
}

# What Slurm runs: JAX finds the other tasks by Slurm's variables.
if [ "${1:-}" = --body ]; then
    ids=$2
    shift 2
    # JAX takes one GPU a task under Slurm, the one of the task's number on its node, unless it is
    # told which.
    [ -z "$ids" ] || export JAX_LOCAL_DEVICE_IDS="$ids"
    trap : TERM # sent to this script too; the tasks save and end, then the script continues
    # srun of Slurm 22.05 to 23.02 does not take the cores of a task from the job.
    srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --kill-on-bad-exit=0 \
        python -m cl_jax.main --distributed "$@" &
    step=$! status=0
    wait "$step" || status=$?
    while [ "$status" -gt 128 ] && kill -0 "$step" 2>/dev/null; do
        status=0 # the wait was interrupted by the signal
        wait "$step" || status=$?
    done
    if [ "$status" -eq 75 ]; then
        printf 'slurm.sh: stopped after a save; back into the queue\n'
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
fi

# shellcheck source=launch/lib.sh
. "$(dirname "$0")/lib.sh"

nodes=1 gpus=8 cpus=8 time=24:00:00 per_node='' dry='' extra=''
newline='
'
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --dry-run) dry=1; shift ;;
        --per-node) per_node=1; shift ;;
        --sbatch=*) extra="$extra${1#*=}$newline"; shift ;;
        --nodes=* | --gpus=* | --cpus=* | --time=*)
            value=${1#*=} name=${1%%=*}
            shift
            set -- "$name" "$value" "$@" ;;
        --nodes | --gpus | --cpus | --time | --sbatch)
            [ $# -ge 2 ] || fail "$1 needs a value."
            case $1 in --nodes | --gpus | --cpus) number "$1" "$2" ;; esac
            case $1 in
                --nodes) nodes=$2 ;; --gpus) gpus=$2 ;; --cpus) cpus=$2 ;; --time) time=$2 ;;
                *) extra="$extra$2$newline" ;;
            esac
            shift 2 ;;
        --) shift; break ;;
        *)
            more='slurm.sh --help tells more.'
            fail "unknown option $1. The arguments of cl_jax.main come after --. $more" ;;
    esac
done
case " $* " in
    *' --config='*' --workdir='* | *' --workdir='*' --config='*) ;;
    *) fail "after -- it needs --config=... and --workdir=... for cl_jax.main; got '$*'." ;;
esac

if [ -n "$per_node" ]; then
    tasks=1 cores=$((cpus * gpus)) ids=0
    while [ "${ids##*,}" -lt $((gpus - 1)) ]; do ids="$ids,$((${ids##*,} + 1))"; done
else
    tasks=$gpus cores=$cpus ids=''
fi

# All GPUs of a node are visible to each task (--gpu-bind=none), so that NCCL reaches them and JAX
# picks by number.
set -- "$(cd "$(dirname "$0")" && pwd)/slurm.sh" --body "$ids" "$@"
IFS=$newline
set -f
# shellcheck disable=SC2086 # one word a line
set -- sbatch --job-name=cl_jax --nodes="$nodes" --ntasks-per-node="$tasks" \
    --gpus-per-node="$gpus" --gpu-bind=none --cpus-per-task="$cores" --time="$time" \
    --requeue --open-mode=append --signal=TERM@180 $extra "$@"
unset IFS
if [ -n "$dry" ]; then
    quoted "$@"
else
    exec "$@"
fi
