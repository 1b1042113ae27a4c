"""Tensors of a PyTorch checkpoint, read without PyTorch and without running the pickle in it.

A pickle is a program that may call any function. Here it can name tensors, containers and a few
inert records; whatever else it asks for is an error that names it. A pickle that PyTorch did not
write is read by `cl_jax.weights.objects`.
"""

import collections
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from cl_jax.core.errors import ConfigError
from cl_jax.weights import objects
from cl_jax.weights._unpickling import Call, Refused

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before zip files
_START = pickle.dumps(MAGIC, 2)
_ZIP = b"PK\x03\x04"
_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
# Of what training scripts keep beside the weights: settings, dates, NumPy's numbers.
_INERT = {
    ("argparse", "Namespace"),
    ("torch", "Size"),
    ("torch", "device"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("pathlib", "PosixPath"),
    ("datetime", "timedelta"),
}


class Storage(NamedTuple):
    """A run of numbers of one type, by its key in the file; None as key for what was not kept."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """A view of a storage: offset and strides in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Kind(NamedTuple):
    dtype: np.dtype


class Inert:
    """Stand-in for an object that is not a tensor: it takes whatever the pickle gives it."""

    def __init__(self, *args: Any, **settings: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass


def _inert(*args: Any) -> Inert:
    return Inert()


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(x) is int and x >= 0 for x in numbers):
        raise Refused("a tensor that is not a view of numbers in the file")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *others: Any) -> Any:
    return data


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Kind(_STORAGES[name])
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return Call(_tensor)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return Call(_parameter)
        if (module, name) in _INERT:
            return Call(_inert) if name in ("scalar", "encode") else Inert
        raise Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise Refused("an object outside the file")
        _, kind, key, _, size = pid[:5]
        if not isinstance(kind, _Kind) or type(size) is not int or size < 0:
            raise Refused("a storage of an unknown type")
        if len(pid) > 5 and pid[5] is not None:
            raise Refused("a view of a storage, as PyTorch wrote before 0.4")
        return Storage(str(key), kind.dtype, size)


def read(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of all tensors in a checkpoint, nested dictionaries joined by dots. Arrays of
    16-bit floats keep their type.

    Raises:
      ConfigError: a file that is damaged, of another format, or whose pickle asks for anything that
        is not a tensor. Nothing of it was run.
    """
    kind = "a PyTorch checkpoint"
    try:
        if zipfile.is_zipfile(path):
            return _of_zip(path)
        with path.open("rb") as file:
            start = file.read(len(_START))
            file.seek(0)
            if start.startswith(_ZIP):  # which as a pickle asks for an object outside the file
                raise ValueError("a zip file without its end")
            if start == _START:
                return _of_stream(file, path.stat().st_size)
            kind = "a pickle of arrays"
            return objects.read(file)
    except Refused as error:
        raise ConfigError(
            f"{path}: its pickle asks for {error}, and only tensors are read from a pickle. "
            "Nothing of it was run. Save a plain state_dict, best as safetensors."
        ) from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        raise ConfigError(
            f"{path} cannot be read as {kind}: {type(error).__name__}: {str(error)[:200]}. Is it "
            "whole?"
        ) from None


def _of_zip(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("a zip file without one data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist():
            if archive.read(f"{root}byteorder") != b"little":
                raise ValueError("numbers of a big-endian machine")
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:  # PyTorch compresses nothing
                raise ValueError("a compressed member")
        with archive.open(pickles[0]) as file:
            tree = _Unpickler(file, encoding="utf-8").load()
        kept: dict[str, bytes] = {}

        def numbers(storage: Storage) -> bytes:
            if storage.key not in kept:
                kept[storage.key] = archive.read(f"{root}data/{storage.key}")
            return kept[storage.key]

        return {name: _array(name, tensor, numbers) for name, tensor in _flat(tree).items()}


def _of_stream(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """The format before PyTorch 1.6: pickles in a row, then the storages."""

    def load() -> Any:
        return _Unpickler(file, encoding="utf-8").load()

    if load() != MAGIC or load() != PROTOCOL:
        raise ValueError("a pickle of another version of PyTorch")
    load()  # about the machine
    tensors = _flat(load())
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    kept: dict[str, bytes] = {}
    for key in load():
        (count,) = struct.unpack("<q", file.read(8))
        dtype = storages[str(key)].dtype if str(key) in storages else None
        if dtype is None:
            raise ValueError(f"storage {key} of no tensor")
        if not 0 <= count * dtype.itemsize <= size:
            raise ValueError(f"storage {key} is longer than the file")
        kept[str(key)] = file.read(count * dtype.itemsize)
    return {
        name: _array(name, tensor, lambda storage: kept[storage.key])
        for name, tensor in tensors.items()
    }


def _flat(tree: Any) -> dict[str, Tensor]:
    """The tensors of nested dictionaries and lists."""
    found: dict[str, Tensor] = {}
    # A container is read once: one that holds another twice, and so on, would have no end.
    waiting, seen = [("", tree)], set[int]()
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, Tensor):
            found[name] = node
            continue
        items: Any = ()
        if id(node) not in seen:
            if isinstance(node, Mapping):
                items = node.items()
            elif isinstance(node, list) or type(node) is tuple:
                items = enumerate(node)
            seen.add(id(node))
        below = [(f"{name}.{key}" if name else str(key), value) for key, value in items]
        waiting += [item for item in reversed(below) if isinstance(item[1], Mapping | list | tuple)]
    return found


def _array(name: str, tensor: Tensor, numbers: Callable[[Storage], bytes]) -> np.ndarray:
    storage = tensor.storage
    data = numbers(storage)
    if len(data) != storage.size * storage.dtype.itemsize:
        raise ValueError(f"{name}: {len(data)} bytes for {storage.size} numbers")
    last = tensor.offset + sum(
        (side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides)
    )
    count = math.prod(tensor.shape)
    if len(tensor.shape) != len(tensor.strides) or (
        count and (last >= storage.size or count > storage.size)
    ):
        raise ValueError(f"{name}: a view beyond its storage")
    flat = np.frombuffer(data, storage.dtype)
    if not count:
        return np.zeros(tensor.shape, storage.dtype)
    step = storage.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], tensor.shape, [step * stride for stride in tensor.strides]
    )
    return np.array(view)
