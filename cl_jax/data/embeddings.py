"""Features of many examples with the name and the labels of each: in memory, in files of three
formats, and written piece by piece so that a long job can be resumed."""

import csv
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from cl_jax.core.errors import ConfigError, NotFoundError, SaveError
from cl_jax.core.names import nearest
from cl_jax.core.paths import user_path
from cl_jax.data import lines, tables

SUFFIXES = (".parquet", ".npz", ".csv")
PATHS = ("path", "paths", "file", "filename", "filepath", "name", "id")
_KEY = "cl_jax"  # of the notes in a file's metadata
NOTES = "about"  # their name in an .npz file
LARGEST = 1e17  # of a feature: sums of squares of larger ones overflow float32
_ABOUT = "about.json"


@dataclass(frozen=True)
class Embeddings:
    """Rows of features with what they are of.

    features: {name: float32 [N, D]}. paths: [N] text, the file or the number of each example.
    labels: {name: int32 [N]}, -1 for none. classes: {label: names of its values}. about: where the
    rows are from, such as "run", "step", "root" (the folder of the paths) and "bad" ({path:
    reason} of what could not be read).

    `embeddings["h"]` is a feature, `dict(embeddings)` is {name: array}, and `len` is N.
    """

    features: dict[str, np.ndarray]
    paths: np.ndarray
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.features:
            raise KeyError(
                f"there is no feature {name!r}{nearest(name, self.features)}; there are "
                f"{', '.join(self.features)}."
            )
        return self.features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    def keys(self) -> Iterable[str]:
        """The names of the features."""
        return self.features.keys()

    def words(self, label: str) -> list[str]:
        """A label of every row as text: the name of its class, its number, or ""."""
        if label not in self.labels:
            raise KeyError(
                f"there is no label {label!r}{nearest(label, self.labels)}; there are "
                f"{', '.join(self.labels) or 'none'}."
            )
        names = self.classes.get(label)
        return [
            "" if value < 0 else names[value] if names else str(value)
            for value in self.labels[label].tolist()
        ]

    def rows(self, chosen: np.ndarray) -> "Embeddings":
        """Some of the rows, in this order."""
        return Embeddings(
            {name: values[chosen] for name, values in self.features.items()},
            self.paths[chosen],
            {name: values[chosen] for name, values in self.labels.items()},
            self.classes,
            self.about,
        )

    def save(self, path: str | Path) -> None:
        """Writes a .parquet, .npz or .csv file; the old one stays until the new one is whole.

        Raises:
          ConfigError: another suffix, or a place that cannot be written.
        """
        write(path, [self], self.about | {"classes": self.classes})


# Reading --------------------------------------


def load(path: str | Path) -> Embeddings:
    """Embeddings from a file that `cl-jax embed` wrote, or from one of other origin: .parquet with
    columns of lists, .npz with arrays [N, D], .csv with columns NAME.0, NAME.1, ..., or one array
    [N, D] as .npy. A column "path" (or file, filename, name, id) names the rows.

    Raises:
      NotFoundError: no such file.
      ConfigError: it is damaged, of another format, has no features, NaN or numbers beyond 1e17
        among them, columns of different length, or notes that this package did not write.
    """
    file = user_path(path)
    if not file.is_file():
        raise NotFoundError(
            f"{path} is not a file; expected embeddings ({', '.join(SUFFIXES)}) such as "
            "`cl-jax embed RUN FOLDER` writes."
        )
    readers: dict[str, Callable[[Path], tuple[dict[str, Any], dict[str, Any]]]] = {
        ".parquet": _read_parquet,
        ".npz": _read_npz,
        ".npy": lambda file: ({"features": np.load(file, allow_pickle=False)}, {}),
        ".csv": _read_csv,
    }
    suffix = file.suffix.lower()
    if suffix not in readers:
        raise ConfigError(f"{path} ends in {suffix!r}; expected one of {', '.join(readers)}.")
    try:
        columns, about = readers[suffix](file)
        return _of_columns(str(path), columns, about)
    except ConfigError:
        raise
    except Exception as error:  # a damaged file makes its reader raise nearly anything
        mend = "" if "Object arrays" not in str(error) else " Save text as numpy.array(names, str)."
        reason = f"{type(error).__name__}: {str(error).rstrip('.')}."
        raise ConfigError(f"{path} cannot be read: {reason}{mend}") from None


def _fits_int32(values: np.ndarray) -> bool:
    return not values.size or (-(2**31) <= int(values.min()) and int(values.max()) < 2**31)


def _of_columns(path: str, columns: dict[str, Any], about: dict[str, Any]) -> Embeddings:
    features, labels, paths, called = {}, {}, None, _path_column(columns)
    _check_notes(path, about)
    classes = {name: tuple(words) for name, words in about.pop("classes", {}).items()}
    for name, given in columns.items():
        bytes_ = given.dtype.kind == "S"
        values: Any = np.char.decode(given, "utf-8", "replace") if bytes_ else given
        if values.ndim == 2 and values.dtype.kind in "fiu" and values.shape[1]:
            with np.errstate(over="ignore"):  # reported below with those that are inf in the file
                features[name] = np.asarray(values, np.float32)
        elif name == called:
            paths = values.astype(str)
        elif values.ndim == 1 and values.dtype.kind == "f":  # other measures are left out
            if (found := _whole(values)) is not None:
                labels[name] = found
        elif values.ndim == 1 and values.dtype.kind in "iub" and _fits_int32(values):
            labels[name] = values.astype(np.int32)
        elif values.ndim == 1 and values.dtype.kind in "UOiu":  # numbers beyond 32 bits are names
            words = values.astype(str)
            if values.dtype.kind in "iu":
                words = np.where(values < 0, "", words)
            labels[name], classes[name] = _numbered(words, classes.get(name))
    if not features:
        raise ConfigError(
            f"{path} has no features: its columns are {', '.join(columns) or 'none'}; expected "
            "numbers [N, D], in a .csv as columns NAME.0, NAME.1, ..."
        )
    count = len(next(iter(features.values())))
    if paths is None:
        paths = np.array([str(i) for i in range(count)])
    for name, values in {**features, **labels, "path": paths}.items():
        if len(values) != count:
            raise ConfigError(f"{path}: {name} has {len(values)} rows, the features {count}.")
    for name, values in features.items():
        bad = np.flatnonzero(~(np.abs(values).max(axis=1) <= LARGEST))
        if len(bad):
            raise ConfigError(
                f"{path}: {name} has NaN, inf or numbers beyond {LARGEST:g} in {len(bad)} rows, "
                f"such as {paths[bad[0]]}. Leave those rows out."
            )
    for name, words in classes.items():
        if name in labels and labels[name].max(initial=-1) >= len(words):
            raise ConfigError(
                f"{path}: {name} goes up to {labels[name].max()}, and its notes name {len(words)} "
                "classes. Remove the notes, or name all classes."
            )
    if not count:
        raise ConfigError(f"{path} has no row.")
    return Embeddings(features, paths, labels, classes, about)


def _path_column(columns: Mapping[str, np.ndarray]) -> str | None:
    """The column that names the rows: the first of `PATHS` that there is, wherever it stands."""
    of = {name.lower(): name for name, values in columns.items() if values.ndim == 1}
    return next((of[name] for name in PATHS if name in of), None)


def _check_notes(path: str, about: Any) -> None:
    kinds = {"classes": dict, "bad": dict, "root": str, "run": str}
    wrong = not isinstance(about, dict) or [
        name for name, kind in kinds.items() if not isinstance(about.get(name, kind()), kind)
    ]
    if wrong:
        raise ConfigError(
            f"{path}: its notes ({NOTES!r}) are not those that `cl-jax embed` writes. Leave them "
            "out."
        )


def _whole(values: np.ndarray) -> np.ndarray | None:
    """Whole numbers that were kept as floats as int32, -1 for NaN: tables with a missing label have
    them so. None where they are something else."""
    known = values[~np.isnan(values)]
    if not len(known) or (known != np.rint(known)).any() or np.abs(known).max() >= 2**31:
        return None
    return np.where(np.isnan(values), -1, values).astype(np.int32)


def _numbered(
    words: np.ndarray, known: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    names = known or tuple(sorted({word for word in words.tolist() if word}))
    number = {word: i for i, word in enumerate(names)}
    return np.array([number.get(word, -1) for word in words.tolist()], np.int32), names


def _read_parquet(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import pyarrow.types as types

    table = _parquet().read_table(file)
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        kind = column.type
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            of = kind.value_type
            lengths = set(column.value_lengths().to_pylist())
            if len(lengths) == 1:
                flat = column.flatten().to_numpy(zero_copy_only=False)
                columns[name] = flat.reshape(len(column), -1)
            elif types.is_floating(of) or types.is_integer(of):
                raise ConfigError(
                    f"{file}: the rows of {name} have different lengths, {column.null_count} of "
                    "them none; expected as many numbers in each. Leave those rows out."
                )
        elif types.is_boolean(kind) or (types.is_unsigned_integer(kind) and column.null_count):
            columns[name] = column.cast("int64").fill_null(-1).to_numpy(zero_copy_only=False)
        elif types.is_integer(kind):
            columns[name] = column.fill_null(-1).to_numpy(zero_copy_only=False)
        elif types.is_floating(kind):
            columns[name] = column.to_numpy(zero_copy_only=False)
        elif types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind):
            words = ["" if word is None else str(word) for word in column.to_pylist()]
            columns[name] = np.array(words, str)
    notes = (table.schema.metadata or {}).get(_KEY.encode())
    return columns, json.loads(notes) if notes else {}


def _read_npz(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    # opened here, since NumPy leaves a damaged file open
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
        columns = {name: kept[name] for name in kept.files}
    notes = columns.pop(NOTES, None)
    return columns, json.loads(str(notes)) if notes is not None else {}


def _numbers(file: Path, line: int, cells: list[str]) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # infinite ones are told with those that are given so
            return np.array(cells, np.float32)
    except ValueError as error:
        mend = lines.decimal_comma(cells)
        raise ConfigError(f"{file}, line {line}: {error}; expected numbers.{mend}") from None


def _read_csv(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
        first = opened.readline()
        if "\0" in first:
            raise ConfigError(
                f"{file} has zero bytes; expected a table as UTF-8 text. {lines.TO_UTF8}"
            )
        between = lines.separator(first)
        header = next(csv.reader([first], delimiter=between), [])
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise ConfigError(f"{file} has several columns {twice[0]!r}; expected each name once.")
        reader = csv.reader(opened, delimiter=between)
        groups: dict[str, list[int]] = {}
        places: dict[int, int] = {}
        for column, name in enumerate(header):
            numbered = re.fullmatch(r"(.+)\.(\d+)", name)
            places[column] = int(numbered[2]) if numbered else 0
            groups.setdefault(numbered[1] if numbered else name, []).append(column)
        wide = {name for name, at in groups.items() if f"{name}.0" in [header[i] for i in at]}
        for name in wide:  # a table may have its columns as text sorts them: h.1, h.10, h.2
            groups[name].sort(key=places.__getitem__)
        # float32 at once: a csv of text would be ten times as large in memory
        found: dict[str, list[Any]] = {name: [] for name in groups}
        for number, row in enumerate(reader, 2):
            if not row:  # a blank line
                continue
            if len(row) != len(header):
                raise ConfigError(
                    f"{file}, line {number}: {len(row)} columns; expected {len(header)}."
                )
            for name, at in groups.items():
                if name in wide:
                    found[name].append(_numbers(file, number, [row[i] for i in at]))
                else:
                    found[name].append(row[at[0]])
    columns: dict[str, Any] = {
        name: np.stack(rows) if name in wide and rows else np.array(rows, str)
        for name, rows in found.items()
    }
    called = _path_column(columns)
    for name, values in columns.items():
        if name not in wide and name != called:
            columns[name] = _cells(np.char.strip(values) if len(values) else values)
    return columns, {}


def _cells(words: np.ndarray) -> np.ndarray:
    """A column of labels as numbers where all of its cells are, as other programs write them: 3 or
    3.0, nothing for none. Otherwise they are names, such as 007 beside 7."""
    given = lines.whole(words.tolist())
    if given is None or not any(given):
        return words
    whole = np.array([int(word or -1) for word in given], object)
    return whole.astype(np.int64) if max(abs(whole)) < 2**63 else words


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "parquet files need pyarrow: pip install pyarrow, or give a name that ends in .npz."
        ) from None
    return pyarrow.parquet


# Writing --------------------------------------


def check_place(path: str | Path) -> Path:
    """The path of a file of embeddings that can be written.

    Raises:
      ConfigError: another suffix, a folder, no pyarrow, or a place that cannot be written.
    """
    file = user_path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}.")
    if file.suffix.lower() == ".parquet":
        _parquet()
    tables.check_writable(file)
    return file


def write(path: str | Path, parts: Iterable[Embeddings], about: Mapping[str, Any]) -> None:
    """Writes parts one after the other as one file; only one of them is in memory at a time.

    Args:
      parts: read twice; all of the same columns.
      about: notes that the file carries; .csv files cannot.

    Raises:
      ConfigError: as `check_place`.
      SaveError: the file could not be written to its end; an old one is left as it was.
    """
    file = check_place(path)
    partial = file.with_name(f"{file.name}.part")
    writers = {".parquet": _write_parquet, ".npz": _write_npz, ".csv": _write_csv}
    try:
        writers[file.suffix.lower()](partial, parts, dict(about))
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SaveError(
            f"{path} could not be written: {error}. Make room there, and give the command again."
        ) from error


def _columns(part: Embeddings) -> dict[str, Any]:
    words = {
        name: part.words(name) if name in part.classes else values
        for name, values in part.labels.items()
    }
    return {"path": part.paths} | words | part.features


def _write_parquet(file: Path, parts: Iterable[Embeddings], about: dict[str, Any]) -> None:
    import pyarrow as pa

    writer = None
    try:
        for part in parts:
            arrays = {}
            for name, values in _columns(part).items():
                if name in part.features:
                    flat = pa.array(values.reshape(-1))
                    arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
                elif name in part.labels and name not in part.classes:
                    arrays[name] = pa.array(values, mask=values < 0)
                else:
                    arrays[name] = pa.array([_text(word) for word in values], pa.string())
            table = pa.table(arrays)
            if writer is None:
                schema = table.schema.with_metadata({_KEY: json.dumps(about)})
                writer = _parquet().ParquetWriter(file, schema)
            writer.write_table(table.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()


def _write_csv(file: Path, parts: Iterable[Embeddings], about: dict[str, Any]) -> None:
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
        writer, header = csv.writer(out), False
        for part in parts:
            columns = _columns(part)
            if not header:
                names: list[str] = []
                for name, values in columns.items():
                    many = name in part.features
                    names += [f"{name}.{i}" for i in range(values.shape[1])] if many else [name]
                writer.writerow(names)
                header = True
            narrow = [columns[name] for name in columns if name not in part.features]
            wide = np.concatenate(list(part.features.values()), axis=1)
            for at, row in enumerate(wide):
                # the shortest text from which float32 reads the same number
                writer.writerow([*(values[at] for values in narrow), *map(str, row)])


def _write_npz(file: Path, parts: Iterable[Embeddings], about: dict[str, Any]) -> None:
    """An uncompressed archive, each member streamed: the shapes are known from a first look."""
    shapes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, np.dtype] = {}
    for part in parts:
        for name, values in _arrays(part).items():
            rows = shapes.get(name, (0,))[0]
            shapes[name] = (rows + len(values), *values.shape[1:])
            kinds[name] = np.promote_types(kinds.get(name, values.dtype), values.dtype)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, shape in shapes.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _header(member, shape, kinds[name])
                for part in parts:
                    values = np.ascontiguousarray(_arrays(part)[name], kinds[name])
                    if len(values):
                        member.write(values.view(np.uint8).data)
        with archive.open(f"{NOTES}.npy", "w") as member:
            np.lib.format.write_array(member, np.array(json.dumps(about)))


def _arrays(part: Embeddings) -> dict[str, np.ndarray]:
    return {"path": part.paths.astype(str)} | part.labels | part.features


def _header(member: IO[bytes], shape: tuple[int, ...], kind: np.dtype) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        header,
        {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape},
    )
    member.write(header.getvalue())


def _text(word: str) -> str:
    """A file's name as valid UTF-8."""
    return str(word).encode("utf-8", "replace").decode()


# Piece by piece --------------------------------------


class Pieces:
    """The beginning of a file of embeddings, as pieces in a folder beside it: FILE.partial.

    Args:
      path: of the file that is to be.
      about: what decides the rows (run, step, features, hash of the names).
      overwrite: remove pieces of other rows, which are refused otherwise.

    Raises:
      ConfigError: pieces of something else are there, or the place cannot be written.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any], *, overwrite: bool = False):
        self.file = check_place(path)
        self.folder = self.file.with_name(f"{self.file.name}.partial")
        self.folder.mkdir(exist_ok=True)
        notes = self.folder / _ABOUT
        given = json.loads(json.dumps(about))
        if notes.exists():
            try:
                then = json.loads(notes.read_text())
            except ValueError:
                then = {}
            changed = [
                f"{key} {then.get(key, '(none)')} then, {given.get(key, '(none)')} now"
                for key in {**then, **given}
                if then.get(key) != given.get(key)
                and (key in then or key != "times")  # an earlier version wrote none
            ]
            if changed and not overwrite:
                raise ConfigError(
                    f"{self.folder} holds the beginning of other rows ({'; '.join(changed)}). "
                    "Give --overwrite to remove it, or another --out."
                )
            if not changed:
                return
            shutil.rmtree(self.folder)
            self.folder.mkdir()
        notes.write_text(json.dumps(given))

    @property
    def pieces(self) -> list[Path]:
        """The pieces that are there, in order."""
        return sorted(self.folder.glob("*.npz"))

    @property
    def done(self) -> int:
        """The examples whose rows are written, or that are known to be unreadable."""
        pieces = self.pieces
        return int(pieces[-1].stem) if pieces else 0

    def add(self, part: Embeddings, until: int) -> None:
        """Writes a piece, whose last example is number `until` - 1 of the source."""
        name = self.folder / f"{until:012d}.npz"
        partial = name.with_suffix(".part")
        try:
            with partial.open("wb") as out:
                notes = json.dumps(part.about | {"classes": part.classes})
                columns: dict[str, Any] = {**_arrays(part), NOTES: np.array(notes)}
                np.savez(out, **columns)
            partial.replace(name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise SaveError(
                f"{self.folder} cannot be written: {error}. Make room there; the same command then "
                "continues."
            ) from error

    def _read(self, path: Path) -> Embeddings:
        columns, about = _read_npz(path)
        classes = {name: tuple(words) for name, words in about.pop("classes").items()}
        return Embeddings(
            {name: values for name, values in columns.items() if values.ndim == 2},
            columns["path"],
            {name: v for name, v in columns.items() if v.ndim == 1 and name != "path"},
            classes,
            about,
        )

    def __iter__(self) -> Iterator[Embeddings]:
        return (self._read(path) for path in self.pieces)

    def finish(
        self, about: Mapping[str, Any], listed: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Makes one file of all pieces and removes them; returns {path: reason} of the examples
        that could not be read, those `listed` before among them.

        Raises:
          ConfigError: none of them could.
        """
        bad: dict[str, str] = dict(listed or {})
        classes: dict[str, tuple[str, ...]] = {}
        rows = 0
        for part in self:
            bad |= part.about.get("bad", {})
            classes, rows = part.classes, rows + len(part)
        if not rows:
            name, reason = next(iter(bad.items()), ("", "there are none"))
            shutil.rmtree(self.folder)  # there is nothing to resume
            raise ConfigError(f"no example can be read; {name}: {reason}.")
        write(self.file, self, dict(about) | {"bad": bad, "classes": classes})
        shutil.rmtree(self.folder)
        return bad
