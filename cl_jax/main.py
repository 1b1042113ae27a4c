"""python -m cl_jax.main --config=configs/simclr_v2.py --workdir=runs/first"""

import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from cl_jax.core import xla

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to train: configs/<setting>.py, with :variant[,variant]."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the run is kept: checkpoints, logs, pictures. The same command "
    "resumes a run that is there.",
)
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "train, or evaluate the finished run in --workdir."
)
_STAGE = flags.DEFINE_string(
    "stage", None, "Stage of a config that has several; 'all' for one after the other."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of this job (jax.distributed) first."
)


def main(argv: list[str], added: str = "") -> int | None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; options start with --")
    logging.set_verbosity(logging.WARNING)  # checkpoint libraries tell every step of a save
    import jax

    from cl_jax.core import parallel
    from cl_jax.training import loop

    config = _CONFIG.value
    if _STAGE.value is not None:
        with config.unlocked():
            config.stage = _STAGE.value
    kept = xla.keep_memory()
    try:
        if _DISTRIBUTED.value:
            parallel.join()
        print(
            f"process {jax.process_index() + 1} of {jax.process_count()}, devices "
            f"{jax.local_devices()}",
            file=sys.stderr,
        )
        if added:
            print(f"XLA_FLAGS: added {added}", file=sys.stderr)
        if kept:
            print("memory that a step frees is kept for the next one (glibc)", file=sys.stderr)
        for name, stage, workdir in loop.stages(config, str(_WORKDIR.value)):
            if name:
                print(f"stage {name} in {workdir}", file=sys.stderr)
            if _MODE.value == "eval":
                loop.evaluate(workdir)
            else:
                loop.train(stage, workdir)
    except loop.Interrupted as stopped:
        logging.warning("%s", stopped)
        return 75  # EX_TEMPFAIL: schedulers requeue on it
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        logging.debug("traceback", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run() -> None:
    """Sets what must be set before jax is imported, then runs `main`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(cache) / "cl_jax"))
    os.environ.setdefault(
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"
    )  # most programs of a start take less than one
    added = xla.prepare()
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(lambda argv: main(argv, added))


if __name__ == "__main__":
    run()
