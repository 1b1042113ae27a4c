#!/bin/sh
# A run on a slice of Cloud TPU VMs, from a laptop that has gcloud.
set -eu
# shellcheck source=launch/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: launch/tpu_pod.sh run NAME [OPTIONS] -- ARGUMENTS OF cl_jax.main
       launch/tpu_pod.sh follow|stop|delete NAME [OPTIONS]

  run       create the slice NAME if there is none, copy this checkout to its workers, install it,
            start the run on every worker and follow worker 0. Again with the same arguments it
            resumes the run; Ctrl-C leaves it running.
  follow    the log of worker 0 from its beginning, until the run ends
  stop      SIGTERM on every worker: the run saves and ends, and `run` resumes it
  delete    delete the slice (a slice costs money until it is deleted)

  --zone ZONE       (default: $CLOUDSDK_COMPUTE_ZONE)
  --project PROJECT (default: gcloud's)
  --type TYPE       accelerator type (default v5litepod-16)
  --version NAME    runtime version (default: the one of the type)
  --spot            a slice that may be taken away; `run` then asks for a new one, every minute
                    until there is one, and resumes, as often as it must; it ends where gcloud
                    refuses twice what a minute does not change (a quota, a type, a permission)
  --nfs HOST:/PATH  a share (Filestore) that every worker mounts at /mnt/runs
  --setup COMMAND   run on every worker before the installation, for instance to mount other storage
  --dry-run         print every command and run none

  launch/tpu_pod.sh run moco --zone us-west4-a --spot --nfs 10.0.0.2:/runs -- \
      --config=configs/moco_v2.py:imagenet2012 --workdir=/mnt/runs/moco

On a slice of more than one worker --workdir must be storage that all of them see. Exit status: that
of the run.
USAGE
}

case ${1:-} in
    run | follow | stop | delete) task=$1; shift ;;
    -h | --help | '') usage; [ $# -gt 0 ] || exit 2; exit 0 ;;
    *) fail "unknown task '$1'; have run, follow, stop, delete. tpu_pod.sh --help tells more." ;;
esac
case ${1:-} in
    '' | -*) fail "$task needs the name of the slice: launch/tpu_pod.sh $task NAME." ;;
    *[!a-z0-9-]* | [!a-z]*)
        fail "the name '$1' may have small letters, digits and '-' only, a letter first." ;;
esac
slice=$1
shift

zone=${CLOUDSDK_COMPUTE_ZONE:-} project='' type=v5litepod-16 version=''
spot='' nfs='' setup='' dry=''
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --dry-run) dry=1; shift ;;
        --spot) spot=1; shift ;;
        --zone=* | --project=* | --type=* | --version=* | --nfs=* | --setup=*)
            value=${1#*=} name=${1%%=*}
            shift
            set -- "$name" "$value" "$@" ;;
        --zone | --project | --type | --version | --nfs | --setup)
            [ $# -ge 2 ] || fail "$1 needs a value."
            case $1 in
                --zone) zone=$2 ;; --project) project=$2 ;; --type) type=$2 ;;
                --version) version=$2 ;; --nfs) nfs=$2 ;; *) setup=$2 ;;
            esac
            shift 2 ;;
        --) shift; break ;;
        *)
            more='tpu_pod.sh --help tells more.'
            fail "unknown option $1. The arguments of cl_jax.main come after --. $more" ;;
    esac
done
[ -n "$zone" ] ||
    fail "no zone given; --zone us-west4-a, for instance, or export CLOUDSDK_COMPUTE_ZONE."
if [ "$task" = run ]; then
    case " $* " in
        *' --config='*' --workdir='* | *' --workdir='*' --config='*) ;;
        *) fail "after -- it needs --config=... and --workdir=... for cl_jax.main; got '$*'." ;;
    esac
fi
if [ -z "$version" ]; then
    case $type in
        v5litepod-*) version=v2-alpha-tpuv5-lite ;;
        v5p-*) version=v2-alpha-tpuv5 ;;
        v6e-*) version=v2-alpha-tpuv6e ;;
        *) version=tpu-ubuntu2204-base ;;
    esac
fi
case $nfs in
    '' | *:/*) ;;
    *) fail "--nfs is '$nfs'; expected HOST:/PATH." ;;
esac

tpu() { # tpu VERB WORD...: gcloud on the slice
    verb=$1
    shift
    set -- gcloud compute tpus tpu-vm "$verb" "$@" --zone="$zone"
    [ -z "$project" ] || set -- "$@" --project="$project"
    if [ -n "$dry" ]; then quoted "$@"; else "$@"; fi
}

on_all() { # on_all WORD...: tpu_worker.sh with these words, on every worker at once
    tpu ssh "$slice" --worker=all --command="sh cl_jax/launch/tpu_worker.sh $(quoted "$@")"
}

ready() { # a slice that can be used, created where there is none
    if [ -n "$dry" ]; then
        tpu describe "$slice" --format='value(state)'
        now=''
    else
        now=$(state)
    fi
    case $now in
        READY) return ;;
        '') ;;
        PREEMPTED | TERMINATED | STOPPED) tpu delete "$slice" --quiet ;;
        *)
            delete="launch/tpu_pod.sh delete $slice"
            fail "the slice $slice is $now. Wait until it is READY, or delete it: $delete." ;;
    esac
    set -- "$slice" --accelerator-type="$type" --version="$version" ${spot:+--spot}
    if [ -n "$dry" ]; then tpu create "$@"; else create "$@"; fi
}

create() { # create WORD...: tpu create; what gcloud says is also in $notes/said
    {
        {
            failed=0
            tpu create "$@" 2>&1 >&3 || failed=$?
            echo "$failed" >"$notes/status"
        } | tee "$notes/said" >&2
    } 3>&1
    return "$(cat "$notes/status")"
}

# Whether gcloud refused a slice, the second time in a row, for what a minute does not change. Once
# may pass: a quota counts a slice for some time after it is deleted.
refused() {
    permanent='INVALID_ARGUMENT|NOT_FOUND|PERMISSION_DENIED|UNAUTHENTICATED|[Qq]uota'
    permanent="$permanent|\"code\": (3|5|7|16)([^0-9]|\$)"
    if grep -qE "$permanent" "$notes/said" && ! grep -q 'per minute' "$notes/said"; then
        refusals=$((refusals + 1))
    else
        refusals=0
    fi
    [ "$refusals" -ge 2 ]
}

state() { # READY, CREATING, PREEMPTED, ...; nothing where there is no such slice
    tpu describe "$slice" --format='value(state)' 2>/dev/null || true
}

# This checkout as it is, without what git ignores, to ~/cl_jax of every worker; runs that are there
# stay.
copy() {
    scratch=/tmp/cl_jax
    if [ -z "$dry" ]; then
        scratch=$(mktemp -d)
        trap 'rm -rf "$scratch"' EXIT # of the subshell of this attempt
    fi
    checkout=$(quoted "$(cd "$(dirname "$0")/.." && pwd)")
    # An index of its own: the user's keeps what is staged in it.
    here "cd $checkout" "mkdir -p $scratch" "export GIT_INDEX_FILE=$scratch/index" \
        'git add --all' \
        "git archive --format=tar.gz --output=$scratch/cl_jax.tgz \"\$(git write-tree)\""
    tpu scp "$scratch/cl_jax.tgz" "$slice:" --worker=all
    unpack='mkdir -p cl_jax && rm -rf cl_jax/cl_jax cl_jax/configs'
    unpack="$unpack && tar -xzf cl_jax.tgz -C cl_jax"
    tpu ssh "$slice" --worker=all --command="$unpack"
}

here() { # here LINE...: lines for this machine's shell
    if [ -n "$dry" ]; then printf '%s\n' "$@"; else printf '%s\n' "$@" | sh -eu; fi
}

# Before anything of a run that is going on is replaced; a fresh slice has no script for it.
idle() {
    going='[ -s cl_jax_run.pid ] && [ ! -e cl_jax_run.status ]'
    going="$going && kill -0 \$(cat cl_jax_run.pid) 2>/dev/null"
    told='a run is going on here already; launch/tpu_pod.sh follow shows it, stop ends it'
    tpu ssh "$slice" --worker=all --command="if $going; then echo '$told' >&2; exit 1; fi"
}

start() { # start ARGUMENTS OF cl_jax.main
    idle
    [ -z "$setup" ] || tpu ssh "$slice" --worker=all --command="$setup"
    copy
    [ -z "$nfs" ] || on_all mount "$nfs"
    on_all install
    on_all start "$@"
}

follow() {
    tpu ssh "$slice" --worker=0 --command='sh cl_jax/launch/tpu_worker.sh follow'
}

gone() { # whether there is no slice to use; that one was taken away may show some time later
    [ "$(state)" = READY ] || return 0
    say "status $status; looking for 90 s whether the slice $slice is being taken away"
    for _ in 1 2 3; do
        sleep 30
        [ "$(state)" = READY ] || return 0
    done
    return 1
}

say() { printf 'tpu_pod.sh: %s\n' "$1" >&2; }

[ -n "$dry" ] || command -v gcloud >/dev/null ||
    fail 'there is no gcloud on the PATH; install the Google Cloud CLI, or see --dry-run.'
case $task in
    run)
        trap 'exit 130' INT # also while gcloud answers Ctrl-C with a status of its own
        notes=$(mktemp -d)
        trap 'rm -rf "$notes"' EXIT
        had='' # whether there was a slice: the first one fails by its name, type or quota
        refusals=0
        while :; do
            : >"$notes/said"
            # `set -e` has no effect before `||`: a subshell of its own ends at the first failure.
            set +e
            (set -e; ready)
            status=$?
            if [ "$status" -eq 0 ]; then
                had=1
                (set -e; start "$@"; follow)
                status=$?
            fi
            set -e
            if [ "$status" -eq 0 ] || [ -n "$dry" ] || [ -z "$spot" ] || [ -z "$had" ] ||
                refused || ! gone
            then
                exit "$status"
            fi
            say 'the slice was taken away, or the zone has none; asking for one in a minute'
            sleep 60
        done ;;
    follow) follow ;;
    stop) on_all stop ;;
    delete) tpu delete "$slice" --quiet ;;
esac
