"""Trains a config, or resumes its run where it stopped.

examples:
  cl-jax train simclr_v2 --workdir=runs/first
  cl-jax train simclr_v2:folder /path/to/images     in runs/simclr_v2-images
  cl-jax train dino:folder /path/to/images --workdir=runs/mine --config.batch_size=128
  cl-jax train dino:folder,debug /path/to/images --workdir=/tmp/try
"""

import argparse
import gc
import logging
import os
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from cl_jax.core import paths, xla
from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.core.paths import user_path
from cl_jax.training import configs, stopping
from cl_jax.training.workdir import path_of

KEYS = (
    "Any key of the config is an option: --config.batch_size=128, --config.data.level=hard.\n"
    "In data, views, encoder, optimizer and method, any keyword of the function that reads the\n"
    "section is one too."
)


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The options that training and evaluation share."""
    found = argparse.ArgumentParser(
        prog,
        description=description,
        epilog=KEYS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "--config",
        metavar="CONFIG",
        help="what to train: a name (simclr_v2), a path (configs/simclr_v2.py) or a module "
        "(my_lab.mine), with variants after a colon (simclr_v2:cifar10,debug)",
    )
    found.add_argument(
        "--workdir",
        help="where the run is kept: checkpoints, logs, pictures. The same command resumes a run "
        "that is there. Where it is left out: runs/CONFIG, with PATH runs/CONFIG-FOLDER",
    )
    found.add_argument(
        "--stage", help="stage of a config that has several; all for one after the other"
    )
    found.add_argument(
        "--distributed",
        action="store_true",
        help="join the other processes of this job (jax.distributed) first",
    )
    found.add_argument(
        "--verbosity",
        type=int,
        default=0,
        metavar="N",
        help="1 also prints the flags that were given to XLA",
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    options = parser("cl-jax train", __doc__)
    options.add_argument("given", nargs="?", metavar="CONFIG", help="the same as --config")
    options.add_argument(
        "path", nargs="?", metavar="PATH", help="where the data are, the same as --config.data.path"
    )
    settings, words = configs.take_settings(sys.argv[1:] if argv is None else argv)
    args = options.parse_intermixed_args(words)
    if args.given and args.config:  # `train --config=simclr_v2:folder PATH`
        if args.path:
            options.error(f"two configs are given: {args.config} and {args.given}")
        args.given, args.path = None, args.given
    name = args.config or args.given
    if not name:
        options.error("CONFIG is needed: cl-jax train simclr_v2 --workdir=runs/first")
    if not args.workdir:
        try:
            args.workdir = default_workdir(name, args.path)
        except ConfigError as error:
            options.error(str(error))
        print(f"the run is kept in {args.workdir}", file=sys.stderr)
    if args.path:
        settings.insert(0, ("data.path", args.path))
    return run(args, name, settings, "train")


def default_workdir(name: str, path: str | None = None) -> str:
    """Where a run is kept that names no workdir: "runs/simclr_v2", on the user's own data
    "runs/simclr_v2-photos"; other variants than `folder` are in the name."""
    config, _, variants = name.partition(":")
    own = config if "/" in config or config.endswith(".py") else config.replace(".", "/")
    words = [Path(own).stem, *(one for one in variants.split(",") if one not in ("", "folder"))]
    data = f"-{user_path(path).resolve().stem}" if path else ""
    return str(Path("runs", "_".join(words) + data))


def run(
    args: argparse.Namespace,
    name: str | None,
    settings: list[tuple[str, str | None]],
    mode: str,
) -> int:
    """Trains or evaluates; a mistake of the user is one sentence and status 1.

    Args:
      args: workdir, stage, distributed, verbosity.
      name: the config; None for that of the run in the workdir.
      settings: of the command line, put into the config.
      mode: "train" or "eval".
    """
    try:
        with stopping.Stop(hard=True) as stop:
            try:
                _run(args, name, settings, mode, stop)
            except Exception as error:
                if stopped := stopping.behind(error):
                    raise stopped from None
                return failed(error)
    except stopping.Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopping.STOPPED
    except KeyboardInterrupt:
        return stopping.KILLED
    return 0


def _run(
    args: argparse.Namespace,
    name: str | None,
    settings: list[tuple[str, str | None]],
    mode: str,
    stop: stopping.Stop,
) -> None:
    configs.see_working_folder()
    added = prepare()
    import jax

    from cl_jax.core import parallel
    from cl_jax.training import fit, loop
    from cl_jax.weights import importing

    if args.distributed:
        # Before all that can fail: the others wait five minutes for a process that never joins.
        parallel.join()
        stop.join()
    root = args.workdir if name else str(configs.folder_of_run(args.workdir))
    config = _config(name, root, settings, args.stage)
    if mode == "train":
        _refuse_a_run_in_its_data(config, root)
    given = [key for key, _ in settings]
    found = []
    if name:
        found = fit.fit(config, given, args.workdir)
        found += importing.settle(config, given, fit.begun(config, args.workdir))
    print(
        f"process {jax.process_index() + 1} of {jax.process_count()}, devices "
        f"{jax.local_devices()}",
        file=sys.stderr,
    )
    if added and args.verbosity:
        print(f"XLA_FLAGS: added {added}", file=sys.stderr)
    if jax.process_index() == 0:
        print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    for stage, stage_config, workdir in loop.stages(config, root, given):
        stop.nothing_to_lose(f"before stage {stage}" if stage else "while starting")
        if stage:
            print(f"stage {stage} in {workdir}", file=sys.stderr)
        if mode == "eval":
            stop.nothing_to_lose("in the evaluation")
            loop.evaluate(workdir, stage_config)
        else:
            loop.train(stage_config, workdir, stop)


def _refuse_a_run_in_its_data(config: ConfigDict, workdir: str) -> None:
    """Its own files would count as changes of the data when it is resumed, and its pictures as
    examples.

    Raises:
      ConfigError: the workdir is the folder of the data, or of one of their sources, or lies in it.
    """
    from cl_jax.training import fingerprint

    place = Path(os.path.realpath(path_of(workdir)))
    folders = [Path(os.path.realpath(path)) for path in fingerprint.paths_of(config)]
    for data in (path for path in folders if path.is_dir() and place.is_relative_to(path)):
        elsewhere = data.parent / "runs" / place.name
        raise ConfigError(
            f"workdir={workdir} lies in the folder of the data, {data}; expected a folder outside, "
            "since the files of a run would be taken for data. Give another, such as "
            f"--workdir={elsewhere}."
        )


def failed(error: Exception) -> int:
    """Says what went wrong: one sentence of an expected mistake, a traceback of everything else.
    One of several processes also says which it is, and does not wait for the others to end."""
    jax = sys.modules.get("jax")
    several = bool(jax and jax.distributed.is_initialized() and jax.process_count() > 1)
    who = f"process {jax.process_index() + 1} of {jax.process_count()}: " if several else ""
    if _expected(error):
        said = "\n".join([str(error), *getattr(error, "__notes__", [])])
        print(f"{who}error: {said}", file=sys.stderr, flush=True)
    else:
        print(f"{who}{type(error).__name__}", file=sys.stderr)
        traceback.print_exception(error)
    if several:
        stopping.leave_within(stopping.PATIENCE, 1)
    return 1


def _config(
    name: str | None,
    workdir: str,
    settings: list[tuple[str, str | None]],
    stage: str | None,
) -> ConfigDict:
    config = configs.load(name) if name else configs.of_run(workdir)
    if stage is not None:
        with config.unlocked():
            config.stage = stage
    configs.change(config, settings)  # some of them go to the stages that will run
    return config


def prepare() -> str:
    """Sets what jax reads when it is imported: a cache of compiled programs and XLA's flags;
    returns the flags that were added. Warnings are a line each. Cycles are collected less often
    from here on: tracing makes so many objects, which stay, that looking through them took a tenth
    of a start."""
    gc.set_threshold(50_000, 20, 20)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if cache := paths.cache():
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    # most programs of a start take less than one second
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax logs every step of a save
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    return xla.prepare()


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    """As Python's own hook, but silent on the writes of a checkpoint that are left when one of them
    failed, of which TensorStore's threads tell; `Checkpoints` raises the failure itself."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def _expected(error: Exception) -> bool:
    """Whether the message is all that the user needs: of an error that the package raised with a
    sentence for him. What a library raises, or the package at the hands of the user's own code,
    keeps its traceback."""
    if isinstance(error, ConfigError | SaveError):
        return True
    if not isinstance(error, ValueError | FileNotFoundError | FloatingPointError):
        return False
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    package = Path(__file__).resolve().parents[1]
    libraries = [Path(folder) for folder in {*sysconfig.get_paths().values(), sys.prefix}]
    known = [
        any(file.is_relative_to(root) for root in (package, configs.folder(), *libraries))
        or not file.is_absolute()  # <string>, <frozen importlib>
        for file in files
    ]
    ours = bool(files) and any(
        files[-1].is_relative_to(root) for root in (package, configs.folder())
    )
    return ours and all(known)
