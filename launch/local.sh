#!/bin/sh
# One job as several processes on this machine: every process gets the same command and its own
# number.
set -eu
# shellcheck source=launch/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: launch/local.sh [-n PROCESSES] [-d DEVICES] [-p PORT] [--dry-run] COMMAND...

Runs COMMAND once per process, with what jax.distributed needs in the environment. Lines are marked
with the process they come from.

  -n PROCESSES  how many processes (default 2)
  -d DEVICES    devices of each (default 1): forced host devices on a CPU, on GPUs the next ones in
                order
  -p PORT       where process 0 listens (default: one that is free)
  --keep-memory on a CPU with glibc: keep what a step frees for the next one, which saves a sixth of
                a ResNet-18's step
  --dry-run     print the commands and run nothing

  launch/local.sh -n 2 -d 2 python -m cl_jax.main --distributed \
      --config=configs/simclr_v1.py:debug --workdir=runs/two

Ctrl-C and SIGTERM are passed on as SIGTERM: the run saves and stops, and the same command resumes
it. Exit status: 0 when all processes ended well, 75 when the run was stopped and can be resumed,
else that of the first process that failed; the others are then ended.
USAGE
}

processes=2 devices=1 port='' dry='' keep=''
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --dry-run) dry=1; shift ;;
        --keep-memory) keep=1; shift ;;
        -n | -d | -p)
            [ $# -ge 2 ] || fail "$1 needs a value."
            number "$1" "$2"
            case $1 in -n) processes=$2 ;; -d) devices=$2 ;; *) port=$2 ;; esac
            shift 2 ;;
        --) shift; break ;;
        -*)
            options='-n, -d, -p, --keep-memory, --dry-run'
            fail "unknown option $1; have $options. The command to run comes after them." ;;
        *) break ;;
    esac
done
example='python -m cl_jax.main --distributed --config=... --workdir=...'
[ $# -gt 0 ] || fail "no command given, for instance: $example"

if [ -z "$port" ]; then
    port=$(python3 -c '
import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])
')
fi

# glibc: never use mmap and keep freed blocks; programs run in the thread that calls them.
memory=''
[ -z "$keep" ] ||
    memory='MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647
        JAX_CPU_ENABLE_ASYNC_DISPATCH=false'

device_ids() { # device_ids PROCESS: "2,3" for the second process of two devices
    ids='' next=$(($1 * devices))
    while [ "$next" -lt $((($1 + 1) * devices)) ]; do
        ids="$ids${ids:+,}$next" next=$((next + 1))
    done
    printf '%s' "$ids"
}

job() { # job RUNNER PROCESS COMMAND...: RUNNER with the command as that process of the job
    runner=$1 process=$2
    shift 2
    # shellcheck disable=SC2086 # several words
    "$runner" env "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" \
        "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$process" \
        "JAX_NUM_CPU_DEVICES=$devices" "JAX_LOCAL_DEVICE_IDS=$(device_ids "$process")" $memory "$@"
}

if [ -n "$dry" ]; then
    i=0
    while [ "$i" -lt "$processes" ]; do
        job quoted "$i" "$@"
        i=$((i + 1))
    done
    exit 0
fi

# Each process has a file with its pid, later one with its exit status, and a pipe through which its
# lines are marked.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
asked=''
signal() { # signal NAME: to every process that still runs
    i=0
    while [ "$i" -lt "$processes" ]; do
        if [ -s "$work/$i.pid" ] && [ ! -e "$work/$i.status" ]; then
            kill -s "$1" "$(cat "$work/$i.pid")" 2>/dev/null || true
        fi
        i=$((i + 1))
    done
}
trap 'asked=1; signal TERM' INT TERM HUP

i=0
while [ "$i" -lt "$processes" ]; do
    mkfifo "$work/$i.lines"
    (
        trap '' INT TERM HUP
        while IFS= read -r line; do printf '[%s] %s\n' "$i" "$line"; done <"$work/$i.lines"
    ) &
    (
        trap : INT TERM HUP # a signal to the group interrupts this shell's wait and no more
        job exec "$i" "$@" >"$work/$i.lines" 2>&1 &
        child=$! status=0
        echo "$child" >"$work/$i.pid"
        wait "$child" || status=$?
        while [ "$status" -gt 128 ] && kill -0 "$child" 2>/dev/null; do
            status=0
            wait "$child" || status=$?
        done
        echo "$status" >"$work/$i.part"
        mv "$work/$i.part" "$work/$i.status"
    ) &
    i=$((i + 1))
done

# The first failure decides. The others would wait for the lost process for minutes: they get some
# seconds to end.
result=0 ended=0 since=0 stopping=0
while [ "$ended" -lt "$processes" ]; do
    sleep 0.2 || true
    ended=0 i=0
    while [ "$i" -lt "$processes" ]; do
        if [ -e "$work/$i.status" ]; then
            ended=$((ended + 1))
            status=$(cat "$work/$i.status")
            if [ "$status" -ne 0 ] &&
                { [ "$result" -eq 0 ] || { [ "$result" -eq 75 ] && [ "$since" -eq 0 ]; }; }; then
                result=$status
                [ "$status" -eq 75 ] ||
                    printf 'local.sh: process %s ended with status %s\n' "$i" "$status" >&2
            fi
        fi
        i=$((i + 1))
    done
    if [ "$result" -ne 0 ] && [ "$result" -ne 75 ] && [ "$ended" -lt "$processes" ]; then
        since=$((since + 1))
        [ "$since" -ne 1 ] || signal TERM
        [ "$since" -ne 50 ] || signal KILL
    elif [ "$result" -eq 75 ] && [ "$ended" -lt "$processes" ]; then
        # stopped while it started, the others wait for it
        stopping=$((stopping + 1))
        [ "$stopping" -ne 25 ] || signal TERM
        [ "$stopping" -ne 60 ] || signal KILL
    fi
done
wait
[ -z "$asked" ] || [ "$result" -ne 0 ] ||
    printf 'local.sh: asked to stop, but the run had ended\n' >&2
exit "$result"
