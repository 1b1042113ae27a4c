"""Compiled programs of a run, kept on disk with what it takes to call them, so that a second start
neither traces nor lowers them.

jax's own cache is keyed by the lowered module, so a program has to be traced before it is found.
Here the key is a hash of all that a trace reads:

- the function itself: its code, and every value that it and the functions and modules that it holds
  close over, arrays by their contents (`Reader`);
- the sources: every file of this package by its contents, those of LIBRARIES by time and size;
- types, shapes and placement of the arguments; the config; the processor and its devices; jax's
  settings and the environment's.

What cannot be hashed is refused, and the program is traced as ever: in a process that has imported
code of the user's, such as a method outside the package, which may read files or the clock while it
is traced, or may have changed this package; where a source changed after this process began; an
object of an unknown kind.

It is for the command line (`core.xla.keep_programs`): a notebook or a script of your own traces.
CL_JAX_KEEP_PROGRAMS=0 turns it off there too, and it is off where jax's cache is."""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import importlib.util
import os
import pickle
import platform
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import flax
import jax
import jax.monitoring
import numpy as np
from absl import logging
from jax.experimental import serialize_executable
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from cl_jax.core import heap, parallel, xla
from cl_jax.data import kept
from cl_jax.training import configs

# What traced functions may come from, besides this package and Python's library.
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes")
PACKAGE = __name__.partition(".")[0]
# Keys of a config that no step reads.
NOT_READ = ("evals", "log", "log_steps", "checkpoint_steps", "keep_checkpoints", "stages")
FILES, BYTES = 32, 1 << 29  # that are kept, the newest
LARGEST = 1 << 28  # bytes of arrays that are read for a key
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
    """Something that a program may depend on cannot be hashed; the message says what."""


class Asked:
    """A function of the data that counts its calls. A key does not hold its values, which would
    have to be read: a program whose trace called it is not kept."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.calls = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.function(*arguments)


def compiled(
    lifted: Any,
    arguments: tuple[Any, ...],
    config: ConfigDict,
    options: Callable[[Any], dict[str, Any]] = lambda lowered: {},
) -> Any:
    """The `jax.stages.Compiled` of a function that `parallel.lift` made: read from the disk where
    it is kept, else traced, compiled, and kept.

    Args:
      options: of the compiler, by the lowered function; they must follow from it alone.
    """
    folder, asked = _folder(), list[Asked]()
    known = None if folder is None else _known(lifted, arguments, config, asked)
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
    calls = [one.calls for one in asked]
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
    if calls == [one.calls for one in asked]:
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


def _known(
    lifted: Any, arguments: tuple[Any, ...], config: ConfigDict, asked: list[Asked]
) -> str | None:
    """The key of a program, "machine-program"; None where something cannot be hashed. `asked`
    receives the functions of the data that it holds."""
    try:
        _check_modules()
        reader = Reader()
        plain = configs.plain(config)
        reader.read({name: value for name, value in plain.items() if name not in NOT_READ})
        reader.read(lifted.__wrapped__)
        asked += reader.asked
        machine = _hash(*_machine(), *_libraries())
        return f"{machine}-{_hash(_signature(arguments), *_sources(), reader.digest.hexdigest())}"
    except (Refused, OSError, RecursionError) as error:
        logging.info("a program is not kept: %s", error)
        return None


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
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        names = ("model name", "flags", "Features", "CPU part", "CPU implementer")
        processor = [line for line in lines if line.startswith(names)]
    except OSError:
        processor = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    device = jax.devices()[0]
    settings = {name: getattr(jax.config, name, value) for name, value in jax.config.values.items()}
    return [
        *(processor or [str(platform.uname())]),
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


def _libraries() -> list[str]:
    """Versions of all that is installed; names, sizes and times of the files of LIBRARIES."""
    found = sorted(f"{one.name} {one.version}" for one in metadata.distributions())
    for name in LIBRARIES:
        for path, status in sorted(_files(Path(_roots()[name]))):
            _check_age(path, status)
            found.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return found


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


def _check_modules() -> None:
    """Refuses to go on where a module was imported that is neither this package's, a config of its,
    installed, nor Python's: its code may have put something else in the place of what a trace
    reads."""
    configs_of_package = str(Path(_roots()[PACKAGE]).parent / "configs") + os.sep
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or file.startswith(configs_of_package) or _is_trusted(file, installed=True):
            continue
        if name in ("__main__", "__mp_main__") and Path(file).stem == "cl-jax":
            continue
        raise Refused(f"the module {name} of {file}")


def _cells(x: types.FunctionType) -> list[Any]:
    """What a function closes over."""
    try:
        return [cell.cell_contents for cell in x.__closure__ or ()]
    except ValueError:  # not yet assigned
        raise Refused(f"an empty variable of {x.__qualname__}") from None


def _check(x: Any) -> None:
    """Refuses functions and classes of files that the key does not hold, Python's library apart."""
    if isinstance(x, types.FunctionType):
        file, root = x.__code__.co_filename, str(x.__module__).partition(".")[0]
        # By `dataclasses` and `collections`, of a class whose module is known.
        known = root.startswith("namedtuple_") or _is_ours(root)
        made = file.startswith("<") and known and x.__qualname__.rpartition(".")[2][:2] == "__"
        made = made or file.startswith("<frozen ")
        if not (made or _is_trusted(file)):
            raise Refused(f"the function {x.__module__}.{x.__qualname__} of {file}")
    elif isinstance(x, type) and not _is_ours(x.__module__):
        raise Refused(f"the class {x.__module__}.{x.__qualname__}")


def _is_ours(module: str) -> bool:
    root = module.partition(".")[0]
    return root in (PACKAGE, *LIBRARIES) or root in sys.stdlib_module_names


def _is_trusted(file: str, installed: bool = False) -> bool:
    if file.startswith(tuple(_roots().values())):
        return True
    if {"site-packages", "dist-packages"} & set(Path(file).parts):
        return installed
    return file.startswith(os.path.dirname(os.__file__) + os.sep)


class Reader:
    """Hashes an object and all that it holds into `digest`.

    Raises:
      Refused: it reaches what has no value that could be hashed.
    """

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.asked: list[Asked] = []
        self.numbers: dict[int, int] = {}  # of objects that were met before, by their id
        self.alive: list[Any] = []  # so that no id is given twice
        self.bytes = 0

    def put(self, *words: Any) -> None:
        for word in words:
            text = str(word).encode("utf-8", "surrogateescape")
            self.digest.update(b"%d:" % len(text) + text)

    def read(self, x: Any) -> None:
        if x is None or x is Ellipsis or isinstance(x, bool | int | float | complex | str | bytes):
            if hasattr(x, "__dict__") and not isinstance(x, enum.Enum):
                raise Refused(f"a {type(x).__qualname__} with attributes")
            self.put(type(x).__qualname__, repr(x))
            return
        if id(x) in self.numbers:
            self.put("again", self.numbers[id(x)])
            return
        self.numbers[id(x)] = len(self.numbers)
        self.alive.append(x)
        if isinstance(x, np.dtype | PartitionSpec | slice | range):
            self.put(type(x).__qualname__, repr(x))
        elif isinstance(x, jax.core.Tracer):
            raise Refused("a value of another trace")
        elif isinstance(x, jax.Array | np.ndarray | np.generic):
            self._array(x)
        elif isinstance(x, Mesh):
            self.put("mesh", repr(x), [device.id for device in x.devices.flat])
        elif isinstance(x, Asked):
            self.asked.append(x)
        elif isinstance(x, type):
            self._named(x)
        elif isinstance(x, types.ModuleType):
            if not _is_ours(x.__name__):
                raise Refused(f"the module {x.__name__}")
            self.put("module", x.__name__)
        elif self._is_named(x):
            self.put("named", type(x).__qualname__, x.__module__, x.__qualname__)
            if isinstance(x, types.FunctionType):  # a wrapper bears the name of what it wraps
                self.put(x.__code__.co_filename, x.__code__.co_firstlineno)
        elif isinstance(x, types.FunctionType):
            self._function(x)
        elif isinstance(x, types.MethodType):
            self._all("method", x.__func__, x.__self__)
        elif isinstance(x, functools.partial):
            self._all("partial", x.func, x.args, x.keywords)
        elif isinstance(x, tuple | list):
            self._named(type(x))
            self._all(len(x), *x, getattr(x, "__dict__", None))
        elif isinstance(x, Mapping):
            self._named(type(x))
            items = (part for item in x.items() for part in item)
            attributes = getattr(x, "__dict__", None), getattr(x, "default_factory", None)
            self._all(len(x), *items, *attributes)
        elif isinstance(x, set | frozenset):
            self._set(x)
        else:
            self._object(x)

    def _all(self, kind: Any, *parts: Any) -> None:
        self.put(kind)
        for part in parts:
            self.read(part)

    def _array(self, x: Any) -> None:
        if isinstance(x, jax.Array):
            if not x.is_fully_addressable or x.is_deleted():
                raise Refused("an array that is not here")
            self.put("device array", x.aval)
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                x = jax.random.key_data(x)
        elif not isinstance(x, np.generic) and type(x) not in (np.ndarray, np.memmap):
            raise Refused(f"an array of the class {type(x).__qualname__}")  # with attributes
        values = np.asarray(x)
        self.bytes += values.nbytes
        if values.dtype.hasobject or self.bytes > LARGEST:
            raise Refused(f"an array {values.dtype}{list(values.shape)}")
        self.put(type(x).__qualname__, values.dtype, values.shape)
        self.digest.update(np.ascontiguousarray(values).tobytes())

    def _is_named(self, x: Any) -> bool:
        """Whether an object is what its module has under its name."""
        module, name = getattr(x, "__module__", None), getattr(x, "__qualname__", None)
        if not isinstance(module, str) or not isinstance(name, str):
            return False
        if not _is_ours(module):
            return False
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is x:
            _check(x)
        return found is x

    def _named(self, kind: type) -> None:
        if not self._is_named(kind):
            raise Refused(f"the class {kind.__module__}.{kind.__qualname__}")
        self.put("class", kind.__module__, kind.__qualname__)

    def _function(self, x: types.FunctionType) -> None:
        _check(x)
        self.put("function", x.__module__, x.__qualname__)
        self._code(x.__code__)
        self._all("closure", x.__defaults__, x.__kwdefaults__, vars(x), *_cells(x))

    def _code(self, code: types.CodeType) -> None:
        self.put(code.co_filename, code.co_firstlineno, code.co_names, code.co_code.hex())
        self.put(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        self.put(code.co_varnames, code.co_freevars, code.co_exceptiontable.hex())
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.read(constant)

    def _set(self, x: Any) -> None:
        self._named(type(x))
        if not all(isinstance(one, str | int | float) for one in x):
            raise Refused("a set of objects, which has no order")
        self._all(len(x), *sorted(x, key=repr))

    def _object(self, x: Any) -> None:
        """An object whose class is written in Python: its attributes."""
        slots = [
            name
            for kind in type(x).__mro__
            for name in np.atleast_1d(vars(kind).get("__slots__", ())).tolist()
        ]
        functions = any(isinstance(one, types.FunctionType) for one in vars(type(x)).values())
        # One that is written in C is larger.
        written = type(x).__basicsize__ <= Asked.__basicsize__ + 8 * len(slots)
        if not (functions and written and hasattr(x, "__dict__")):
            raise Refused(f"an object of the class {type(x).__module__}.{type(x).__qualname__}")
        self._named(type(x))
        held = {name: getattr(x, name) for name in slots if hasattr(x, name)} | vars(x)
        if dataclasses.is_dataclass(x):
            held |= {f.name: getattr(x, f.name, None) for f in dataclasses.fields(x)}
        module = isinstance(x, flax.linen.Module)
        for name in ("__dict__", "__weakref__", *(_INTERNAL if module else ())):
            held.pop(name, None)
        self._all(len(held), *(part for item in held.items() for part in item))


# Of a flax module outside `apply`: its number, its setup, its parent.
_INTERNAL = ("_id", "_state", "_parent_ref", "parent", "scope")
