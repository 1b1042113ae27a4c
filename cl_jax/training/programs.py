"""Compiled programs of a run, kept on disk with what it takes to call them, so that a second start
neither traces nor lowers them.

jax's own cache is keyed by the lowered module, so a program has to be traced before it is found.
Here the key is a hash of all that a run is built from:

- its config and the file of that, the facts of its data (`core.method.Run`), and the labels that
  were asked for;
- the sources: every file of this package by its contents, those of LIBRARIES by time and size;
- types, shapes and placement of the arguments; the processor and its devices; jax's settings and
  the environment's.

Where a run is built from more than that, the program is traced as ever: a stage after another, a
config that names a file, a process that has imported code of the user's (a method outside the
package may read files or the clock while it is traced, or may have changed this package), and one
whose sources changed after it began.

It is for the command line (`core.xla.keep_programs`): a notebook or a script of your own traces.
CL_JAX_KEEP_PROGRAMS=0 turns it off there too, and it is off where jax's cache is."""

import contextlib
import functools
import hashlib
import importlib.util
import os
import pickle
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jax.monitoring
import numpy as np
from absl import logging
from jax.experimental import serialize_executable
from ml_collections import ConfigDict

from cl_jax.core import heap, parallel, processor, xla
from cl_jax.core.method import Run
from cl_jax.core.paths import user_path
from cl_jax.data import kept
from cl_jax.training import configs

# Whose functions a trace goes through, besides this package's and Python's library's.
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes")
PACKAGE = __name__.partition(".")[0]
# Keys of a config that no program is built from. The seed is an argument of them, and what it draws
# of the data `Run` tells.
NOT_READ = (
    *("checkpoint_steps", "evals", "keep_checkpoints", "loading"),
    *("log", "log_steps", "seed", "stages"),
)
FILES, BYTES = 32, 1 << 29  # that are kept, the newest
_ENVIRONMENT = (
    "XLA",
    "JAX",
    "FLAX",
    "LIBTPU",
    "TPU",
    "TF_",
    "CUDA",
    "NVIDIA",
    "ROCM",
    "HIP",
    "NCCL",
    "NPROC",  # the threads of XLA's CPU client, which it divides loops by
    "PJRT",
)
_HITS, _MISSES = (f"/jax/compilation_cache/cache_{what}" for what in ("hits", "misses"))


class Refused(Exception):
    """A program may depend on more than its key would hold; the message says on what."""


class Asked:
    """A function of the data, and hashes of what it has answered: a run is built from that."""

    def __init__(self, function: Callable[[str], np.ndarray]):
        self.function = function
        self.answers: list[str] = []

    def __call__(self, field: str) -> np.ndarray:
        found = self.function(field)
        values = np.asarray(found)
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        self.answers.append(f"{field} {values.dtype}{values.shape} {digest}")
        return found


def compiled(
    name: str,
    lifted: Any,
    arguments: tuple[Any, ...],
    config: ConfigDict,
    run: Run,
    options: Callable[[Any], dict[str, Any]] = lambda lowered: {},
) -> Any:
    """The `jax.stages.Compiled` of a function that `parallel.lift` made: read from the disk where
    it is kept, else traced, compiled, and kept.

    Args:
      name: of the function among those of the run.
      config, run: what the function follows from.
      options: of the compiler, by the lowered function; they must follow from it alone.
    """
    folder = _folder()
    known = None if folder is None else _known(name, arguments, config, run)
    if folder is None or known is None:
        lowered = lifted.lower(*arguments)
        heap.give_back()
        return lowered.compile(options(lowered))
    key = folder / f"{known}.key"
    with contextlib.suppress(OSError, ValueError):
        module, digest = key.read_text().split()
        if digest == _checksum(key, module.encode()).hex():
            found = _read(folder / f"{module}.program", arguments)
            if found is not None:
                return found
    answers = _answers(run)
    traced = lifted.trace(*arguments)
    lowered = traced.lower()
    heap.give_back()
    # Other sources or another config may have led to this very program.
    module = _hash(
        known.partition("-")[0],
        _signature(arguments),
        lowered.as_text(),
        *_used(lowered),
        f"{traced.out_info} {lowered.out_tree} {options(lowered)!r}",
    )
    file = folder / f"{module}.program"
    program = _read(file, arguments)
    if program is None:
        with _compilations() as seen:
            program = lowered.compile(options(lowered))
        # What jax read from its cache lacks parts when it is written again (XLA's CPU compiler).
        if seen[_HITS] or not seen[_MISSES] or not _write(file, program, arguments):
            return program
    # Labels that the trace itself asked for are not in the key, nor known before the next trace.
    if _answers(run) == answers:
        _put(key, f"{module} {_checksum(key, module.encode()).hex()}".encode())
    return program


def _used(lowered: Any) -> list[str]:
    """The names of the arguments that a lowered function reads. Its text leaves out the others and
    numbers these from 0, so that it does not say which they are."""
    return [
        str(argument.location)
        for function in lowered.compiler_ir().body.operations
        if "arg_attrs" in function.attributes
        for argument in function.regions[0].blocks[0].arguments
    ]


# Files --------------------------------------------------------------------------------------------


def _folder() -> Path | None:
    """Where programs are kept; None where they are not."""
    place = getattr(jax.config, "jax_compilation_cache_dir", None)
    on = getattr(jax.config, "jax_enable_compilation_cache", False)
    off = os.environ.get(xla.KEEP_PROGRAMS, "0").lower() in ("0", "false", "no", "off")
    if not place or not on or off or "://" in place or jax.process_count() > 1:
        return None
    return Path(place) / "programs"


def _read(file: Path, arguments: tuple[Any, ...]) -> Any:
    """The program of a file; None where the file is missing or damaged."""
    try:
        content = file.read_bytes()
        digest, content = content[:32], content[32:]
        if digest != _checksum(file, content):
            raise ValueError("it is damaged")
        program, outputs = pickle.loads(content)
        found = serialize_executable.deserialize_and_load(
            program,
            jax.tree.structure((arguments, {})),
            jax.tree.structure(outputs),
            execution_devices=list(parallel.mesh_of(arguments).devices.flat),
        )
        with contextlib.suppress(OSError):  # a folder that is read alone
            os.utime(file)
        return found
    except FileNotFoundError:
        return None
    except Exception as error:
        logging.info("%s cannot be read (%s); its program is traced again.", file, error)
        return None


def _write(file: Path, program: Any, arguments: tuple[Any, ...]) -> bool:
    """Keeps a program; False where that cannot be done."""
    try:
        content, inputs, outputs = serialize_executable.serialize(program)
        # An example in place of the structure, which cannot be pickled.
        example = jax.tree.unflatten(outputs, range(outputs.num_leaves))
        content = pickle.dumps((content, example))
        same = jax.tree.structure(pickle.loads(content)[1]) == outputs
        if not same or inputs != jax.tree.structure((arguments, {})) or len(content) > BYTES // 4:
            return False
    except Exception as error:  # of jax, of a kind that depends on the program
        logging.info("a program is not kept (%s).", error)
        return False
    return _put(file, _checksum(file, content) + content)


def _put(file: Path, content: bytes) -> bool:
    try:
        kept.put(file, lambda out: out.write(content))
        found = [(path, path.stat()) for path in file.parent.iterdir()]
        found.sort(key=lambda one: -one[1].st_mtime_ns)
        for kind, most in ((".program", FILES), (".key", 8 * FILES), (".partial", 8)):
            number = total = 0
            for path, status in found:
                if path.suffix == kind:
                    number, total = number + 1, total + status.st_size
                    if number > most or total > BYTES:
                        path.unlink(missing_ok=True)
    except OSError as error:
        logging.info("%s is not kept (%s).", file, error)
        return False
    return True


def _checksum(file: Path, content: bytes) -> bytes:
    return hashlib.sha256(file.name.encode() + content).digest()


@contextlib.contextmanager
def _compilations() -> Iterator[dict[str, int]]:
    """{event: count} of hits in jax's cache and of programs that were added to it."""
    seen = {_HITS: 0, _MISSES: 0}

    def count(event: str, **_: Any) -> None:
        if event in seen:
            seen[event] += 1

    jax.monitoring.register_event_listener(count)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_listener(count)


# The key ------------------------------------------------------------------------------------------


def _known(name: str, arguments: tuple[Any, ...], config: ConfigDict, run: Run) -> str | None:
    """The key of a program, "machine-program"; None where it may depend on more."""
    try:
        files = _config_files()
        machine = _hash(*_machine(), *_libraries())
        program = _hash(name, _signature(arguments), *_sources(), *files, *_facts(config, run))
        return f"{machine}-{program}"
    except (Refused, OSError) as error:
        logging.info("a program is not kept: %s", error)
        return None


def _facts(config: ConfigDict, run: Run) -> list[str]:
    """What a run is built from: its config, and of its data what `Run` tells.

    Raises:
      Refused: there is more, such as another run, or a file.
    """
    if run.previous is not None:
        raise Refused("it is of a stage after another")
    plain = {key: value for key, value in configs.plain(config).items() if key not in NOT_READ}
    for section, values in plain.items():
        for value in _leaves(values):
            if not isinstance(value, bool | int | float | str | None):
                raise Refused(f"{section} has a {type(value).__qualname__}")
            if not isinstance(value, str) or not value:
                continue
            if "." in value and value in sys.modules and not value.startswith(f"{PACKAGE}."):
                raise Refused(f"{section} names the module {value}")
            # Of the data's files a trace knows what `run` and the arguments say.
            if section != "data" and user_path(value).exists():
                raise Refused(f"{section} names the file {value}")
    return [repr(plain), repr(run._replace(labels=None)), *_answers(run)]


def _answers(run: Run) -> list[str]:
    """Hashes of the labels that were asked for until now."""
    if run.labels is None:
        return []
    if not isinstance(run.labels, Asked):
        raise Refused("what its labels are is not known")
    return list(run.labels.answers)


def _leaves(x: Any) -> Iterator[Any]:
    if isinstance(x, Mapping | tuple | list):
        for value in x.values() if isinstance(x, Mapping) else x:
            yield from _leaves(value)
    else:
        yield x


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _signature(arguments: Any) -> str:
    """Structure, types, shapes and placement of arguments."""
    leaves, structure = jax.tree.flatten(arguments)
    found = [str(structure)]
    for x in leaves:
        if isinstance(x, jax.Array):
            on: set[Any] = x.sharding.device_set
            devices = sorted(device.id for device in on)
            found.append(f"{x.aval!r} {x.sharding!r} {devices} {x.committed}")
        else:
            found.append(f"{type(x).__name__} {np.asarray(x).dtype}{list(np.shape(x))}")
    return "\n".join(found)


def _machine() -> list[str]:
    """The processor, the devices, and all that jax and XLA are told."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    device = jax.devices()[0]
    settings = {name: getattr(jax.config, name, value) for name, value in jax.config.values.items()}
    return [
        *(processor.lines() or [str(platform.uname())]),
        platform.machine(),
        f"{sys.version} {sys.flags}",
        f"{cores} of {os.cpu_count()} cores",
        f"{jax.sharding.get_abstract_mesh()}",
        f"{device.platform} {device.client.platform_version}",
        *(f"{one.id} {one.device_kind}" for one in jax.devices()),
        *(f"{name}={settings[name]!r}" for name in sorted(settings)),
        *(
            f"{name}={getattr(flax.config, name)!r}"
            for name in dir(flax.config)
            if "__" not in name
        ),
        *(
            f"{name}={os.environ[name]}"
            for name in sorted(os.environ)
            if name.startswith(_ENVIRONMENT)
        ),
    ]


@functools.cache
def _roots() -> dict[str, str]:
    """Folders of this package and of LIBRARIES by name."""
    found = {}
    for name in (PACKAGE, *LIBRARIES):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise Refused(f"{name} is not a folder")
        found[name] = f"{next(iter(spec.submodule_search_locations))}{os.sep}"
    return found


def _sources() -> list[str]:
    """Contents of this package's files.

    Raises:
      Refused: one of them changed after this process began, and may not be what was imported.
    """
    found = []
    for path, status in sorted(_files(Path(_roots()[PACKAGE]))):
        if path.endswith(".py"):
            _check_age(path, status)
            found += [path, hashlib.sha256(Path(path).read_bytes()).hexdigest()]
    return found


@functools.cache  # what is imported stays as it is, and a walk takes a while on a network disk
def _libraries() -> tuple[str, ...]:
    """All that is installed, by version; names, sizes and times of the files of LIBRARIES.

    Raises:
      Refused: one of them changed after this process began.
    """
    found = _installed()
    for name in LIBRARIES:
        for path, status in sorted(_files(Path(_roots()[name]))):
            _check_age(path, status)
            found.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return tuple(found)


def _installed() -> list[str]:
    """The folders "NAME-VERSION.dist-info" of packages; to read what is in them takes 0.15 s."""
    folders = [folder for folder in sys.path if os.path.isdir(folder)]
    names = [name for folder in folders for name in os.listdir(folder)]
    return sorted(name for name in names if name.endswith((".dist-info", ".egg-info")))


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """The sources and libraries below a folder."""
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files(Path(entry.path))
        elif entry.name.endswith((".py", ".so", ".pyd", ".dylib")):
            yield entry.path, entry.stat()


def _check_age(path: str, status: os.stat_result) -> None:
    # The second of the two times cannot be set back, as copying tools set the first.
    if max(status.st_mtime, status.st_ctime) >= _began():
        raise Refused(f"{path} changed after this process began")


@functools.cache
def _began() -> float:
    """When this process began, or earlier, by the clock of files."""
    try:
        after_boot = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - after_boot / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = time.perf_counter() - _IMPORTED[0] + 60.0  # what was imported before this
    return time.time() - age - 0.05


_IMPORTED = [time.perf_counter()]


def _config_files() -> list[str]:
    """Contents of the config files that were run, the package's own apart.

    Raises:
      Refused: another module was imported that is neither this package's, installed, nor Python's:
        its code may have put something else in the place of what a trace reads.
    """
    configs_of_package = str(Path(_roots()[PACKAGE]).parent / "configs") + os.sep
    found = []
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or file.startswith(configs_of_package) or _is_trusted(file):
            continue
        if name in ("__main__", "__mp_main__") and Path(file).stem == "cl-jax":
            continue
        if name != f"config {Path(file).resolve()}":  # of `configs`
            raise Refused(f"the module {name} of {file}")
        _check_age(file, os.stat(file))
        found += [file, hashlib.sha256(Path(file).read_bytes()).hexdigest()]
    return found


def _is_trusted(file: str) -> bool:
    if file.startswith(tuple(_roots().values())):
        return True
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return bool(installed) or file.startswith(os.path.dirname(os.__file__) + os.sep)
