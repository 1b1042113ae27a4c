#!/bin/sh
# What tpu_pod.sh runs on each worker of a slice:
# tpu_worker.sh mount|install|start|follow|stop [WORD...]
# The checkout is ~/cl_jax, its environment ~/cl_jax_env; of the run there are ~/cl_jax_run.log,
# .pid and .status.
set -eu
[ "${1:-}" != --help ] || { sed -n 's/^# //p' "$0"; exit; }
cd

case ${1:-} in
    mount) # mount HOST:/PATH
        if ! mountpoint -q /mnt/runs; then
            sudo apt-get install -y nfs-common
            sudo mkdir -p /mnt/runs
            sudo mount -t nfs "$2" /mnt/runs
            # For this user's group, each file for its owner to remove.
            [ -w /mnt/runs ] ||
                { sudo chgrp "$(id -g)" /mnt/runs && sudo chmod g+rwx,+t /mnt/runs; }
        fi ;;
    install)
        pip install --quiet --user uv
        PATH=$HOME/.local/bin:$PATH
        # The Python of the machine's image may be older than cl_jax needs.
        [ -d cl_jax_env ] || uv venv --quiet --python 3.12 cl_jax_env
        VIRTUAL_ENV=$HOME/cl_jax_env uv pip install --quiet -e './cl_jax[tpu]' ;;
    start) # start ARGUMENTS OF cl_jax.main
        shift
        rm -f cl_jax_run.pid cl_jax_run.status
        cd cl_jax
        (
            trap '' HUP # the session ends, the run continues
            "$HOME/cl_jax_env/bin/python" -m cl_jax.main --distributed "$@" &
            echo $! >~/cl_jax_run.pid
            status=0
            wait $! || status=$?
            echo "$status" >~/cl_jax_run.status
        ) </dev/null >~/cl_jax_run.log 2>&1 &
        while ! [ -s ~/cl_jax_run.pid ]; do sleep 0.1; done ;;
    follow)
        tail -n +1 --pid="$(cat cl_jax_run.pid)" -f cl_jax_run.log
        while ! [ -s cl_jax_run.status ]; do sleep 0.2; done
        exit "$(cat cl_jax_run.status)" ;;
    stop)
        pid=$(cat cl_jax_run.pid)
        kill -TERM "$pid" 2>/dev/null || exit 0
        while kill -0 "$pid" 2>/dev/null; do sleep 1; done ;;
    *)
        printf "tpu_worker.sh: unknown task '%s'; --help tells more\n" "${1:-}" >&2
        exit 2 ;;
esac
