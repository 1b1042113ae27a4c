"""Arrays of a pickle of NumPy arrays and records, read without running it: what JAX and Haiku code
saves, such as BYOL's published checkpoints.

As in `cl_jax.weights.pickles`, nothing that the pickle names is imported or called. NumPy's arrays
are rebuilt here; a class of another package becomes a record of what the pickle puts into it; what
the standard library has beyond plain containers is refused by name.
"""

import _compat_pickle
import collections
import pickle
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from cl_jax.weights._unpickling import Call, Refused

# Named tuples that a pickle refers to without their fields.
_FIELDS = {
    ("byol.byol_experiment", "_ByolExperimentState"): (
        "online_params", "target_params", "online_state", "target_state", "opt_state",
    ),
    ("byol.eval_experiment", "_EvalExperimentState"): (
        "backbone_params", "classif_params", "backbone_state", "backbone_opt_state",
        "classif_opt_state",
    ),
}  # fmt: skip
_MAPPINGS = {"FlatMapping", "FlatMap", "frozendict", "FrozenDict"}  # of Haiku, and of Flax
_CONTAINERS = {
    "object", "dict", "list", "tuple", "set", "frozenset", "complex", "slice", "bytearray",
}  # fmt: skip
_NUMBERS = {np.dtype(code).str[1:] for code in "?bBhHiIlLqQefd"}


class Record:
    """What stands for an object of another package: parts are the arguments that it was made of and
    the state that it was given. fields: the names of the first, where they are known."""

    fields: tuple[str, ...] = ()
    parts: list[Any]

    def __new__(cls, *args: Any, **settings: Any) -> "Record":
        made = object.__new__(cls)
        made.parts = [*args, settings] if settings else list(args)
        return made

    def __init__(self, *args: Any, **settings: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.parts.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.parts.append({key: value})

    def append(self, value: Any) -> None:
        self.parts.append(value)


class Type:
    """What stands for `numpy.dtype`: its code, and the byte order that its state adds."""

    def __init__(self, code: Any = "", *args: Any):
        self.code, self.order = str(code).lstrip("<>=|"), str(code)[:1]

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1:
            self.order = str(state[1])

    def dtype(self) -> np.dtype:
        if self.code == "bfloat16":
            return np.dtype(ml_dtypes.bfloat16)
        if self.code not in _NUMBERS:
            raise Refused(f"an array of type {self.code[:20]!r}")
        return np.dtype((">" if self.order == ">" else "<") + self.code)


class Numbers:
    """What stands for `numpy.ndarray`; array is None until its state was given."""

    array: np.ndarray | None = None

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, data = state
        self.array = _array(data, dtype, shape, "F" if columns_first else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, Type) or not isinstance(data, bytes | bytearray):
        raise Refused("an array that is not of numbers")
    shape = tuple(shape)
    if not all(type(side) is int and side >= 0 for side in shape):
        raise Refused("an array of no shape")
    flat = np.frombuffer(data, dtype.dtype())
    return flat.reshape(shape, order="F" if order == "F" else "C").copy()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *others: Any) -> Numbers:
    made = Numbers()
    made.array = _array(data, dtype, shape, order)
    return made


def _reconstruct(*args: Any) -> Numbers:
    return Numbers()


def _made_by(make: Any, args: Any, state: Any, *others: Any) -> Numbers:
    """A `jax.Array`, or an array in dill: how NumPy makes it, and its state."""
    made = Numbers()
    made.__setstate__(state)
    return made


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes, as protocols before 3 write them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("_codecs.encode of something else than bytes")
    return text.encode("latin1")


def _mapping(*args: Any) -> Any:
    return args[0] if len(args) == 1 and isinstance(args[0], Mapping) else Record(*args)


def _class(module: str, name: str, fields: Any = ()) -> type[Record]:
    fields = tuple(fields) if isinstance(fields, tuple | list) else ()
    fields = fields or _FIELDS.get((module, name), ())
    return type("Record", (Record,), {"fields": tuple(str(field) for field in fields)})


def _named_tuple(name: Any, fields: Any, module: Any = "", *others: Any) -> type[Record]:
    """A named tuple as dill writes it."""
    return _class(str(module), str(name), fields)


def _old_object(cls: Any, *others: Any) -> Record:
    return Record()


def _scalar(*args: Any) -> None:
    return None


_KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): Call(_encode),
    ("copyreg", "_reconstructor"): Call(_old_object),
    ("datetime", "datetime"): Record,
    ("datetime", "timedelta"): Record,
    ("pathlib", "PosixPath"): Record,
    ("numpy", "ndarray"): Numbers,
    ("numpy", "dtype"): Type,
    ("dill._dill", "_create_namedtuple"): Call(_named_tuple),
    ("dill._dill", "_create_array"): Call(_made_by),
}
_BY_LAST = {  # of NumPy and JAX, whose modules moved
    "_reconstruct": Call(_reconstruct),
    "_frombuffer": Call(_from_buffer),
    "scalar": Call(_scalar),
    "_reconstruct_array": Call(_made_by),
    "reconstruct_device_array": Call(_made_by),
    "_reconstruct_device_array": Call(_made_by),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Protocols before 3 call modules and functions as Python 2 did.
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        package = module.split(".")[0]
        if package in ("numpy", "jax", "jaxlib") and name in _BY_LAST:
            return _BY_LAST[name]
        if package in ("haiku", "flax") and name in _MAPPINGS:
            return Call(_mapping)
        if module == "builtins":
            if name in _CONTAINERS:
                return _class(module, name)
        elif package not in sys.stdlib_module_names and package not in ("dill", "cloudpickle"):
            return _class(module, name)
        raise Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("an object outside the file")


def read(file: BinaryIO) -> dict[str, np.ndarray]:
    """{name: array} of all arrays in a pickle, nested containers and records joined by dots.

    Raises:
      Refused: it names what is neither a container nor an object of a package.
      Exception: any other, of a damaged file.
    """
    found: dict[str, np.ndarray] = {}
    # Without those that were seen, a list that holds another twice, and so on, has no end.
    waiting, seen = [("", _Unpickler(file, encoding="latin1").load())], set[int]()
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, Numbers):
            if node.array is not None:
                found[name] = node.array
            continue
        if isinstance(node, str | bytes | int | float) or id(node) in seen:
            continue
        seen.add(id(node))
        items = [(f"{name}.{key}" if name else str(key), part) for key, part in _parts(node)]
        waiting += reversed(items)
    return found


def _parts(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, Mapping):
        return list(node.items())
    if isinstance(node, list | tuple):
        return list(enumerate(node))
    if isinstance(node, Record):
        names = [*node.fields, *range(len(node.fields), len(node.parts))]
        return list(zip(names, node.parts))
    return []
