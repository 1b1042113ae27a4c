"""`text`: sentences, as rows of token numbers. The user's own file, or text that needs no download.

    sentences.txt     one sentence a line
    pairs.tsv         two columns: a sentence and its positive (a paraphrase, an entailment)
    triples.tsv       three columns: the third is a hard negative (a contradiction)
    any.txt.gz        each of them compressed by gzip, xz or bzip2
    tokens.npz        arrays "tokens", and perhaps "tokens_b", "tokens_c", of token numbers [N, T]

Fields: "tokens" uint16 [T], and of pairs "tokens_b", of triples "tokens_c"; 0 is padding, and
`sizes["tokens"]` the vocabulary. `more["sts"]` has "tokens", "tokens_b" and "score", float32: how
alike people found the two; `more["sts_dev"]` are those to choose settings by.
`more["classify/<set>"]` has "tokens" and "label".

Without a file, `embedded="scenes"` is sentences about the images of `scenes`, with their positives,
hard negatives and scored pairs; `embedded="prose"` is the documentation that ships with Python and
numpy, one sentence an example. The latter differs between versions of the two.
"""

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import re
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cl_jax.core.paths import user_path
from cl_jax.core.seeds import generator
from cl_jax.data import captions, lines, scenes, text_tasks, tokenizer
from cl_jax.data.parts import spaced
from cl_jax.data.source import ForEvaluation, Source, Splits, from_arrays, with_learnt
from cl_jax.data.tokenizer import Tokenizer
from cl_jax.data.wordpiece import WordPiece

FIELDS = ("tokens", "tokens_b", "tokens_c")
_MEANING = (
    "1 (sentences), 2 (sentence, positive) or 3 (sentence, positive, hard negative), divided by "
    "tabs"
)
_WORDS = (5, 40)  # of a sentence of the embedded prose


def make(
    *,
    path: str = "",
    embedded: str = "scenes",
    test_path: str = "",
    test_share: float = 0.1,
    sts: ForEvaluation[str] = "",
    classify: ForEvaluation[str] = "",
    length: int = 32,
    vocab_size: int = 4000,
    lowercase: bool = True,
    tokenizer_path: str = "",
    tasks_tokenizer_path: ForEvaluation[str] = "",
    tokenizer_cache: str = "",
    on_error: str = "raise",
    columns: int = 3,
    train_size: int = 8192,
    test_size: int = 2048,
    limit: int = 0,
    seed: int = 0,
    learnt: Mapping[str, Any] | None = None,
) -> Splits:
    """Sentences as tokens.

    Args:
      path: the text file; "" for `embedded`.
      embedded: "scenes" or "prose".
      test_path: a file in the form of `path`. Without one, `test_share` of the sentences are the
        test part, by a hash of the sentence: adding sentences moves none of the others.
      sts: a file of scored pairs: three columns sentence, sentence, score, or a header with the
        columns "a", "b", "score" and perhaps "set" and "split"; each set is a source of its own,
        `more["sts/<set>"]`, and its rows whose split is dev another, `more["sts_dev/<set>"]`. Rows
        of train and rows without a score are left out. Of a folder each file is a set, by its name
        without ending.
      classify: a file of sentences with classes: a header with the columns "label", "text" and
        perhaps "set" and "split"; each set is a source, `more["classify/<set>"]`, and its rows
        whose split is test another, `more["classify/<set>/test"]`. Rows of dev are left out. With
        a column "text_b" an example is a pair of sentences. Of a folder each file is a set.
      length: tokens of a sentence, start and end included; longer ones are cut. Of numbers in a
        .npz it is their own length.
      vocab_size, lowercase, tokenizer_cache: of the tokenizer that is trained on the training part,
        see `data.tokenizer.train`.
      tokenizer_path: a sentencepiece model to use instead, or BERT's vocab.txt (uncased).
      tasks_tokenizer_path: the same, beside numbers in a .npz: the one that the numbers are of, by
        which `sts` and `classify` are read; "" is `tokenizer_path`. It may be given after training.
      on_error: "raise" names empty sentences of any of these files; "skip" leaves them out and
        counts those of `path` in `Source.skipped`.
      columns: how many of the fields the embedded scenes have: 1 sentences, 2 pairs, 3 triples.
      train_size, test_size: examples of the embedded text; prose may have fewer.
      limit: at most so many sentences of each part of `path`, from its whole length; 0 for all. For
        trying a command.
      seed: of the words of the embedded sentences.
      learnt: see `Source`: {"tokenizer"}. The sentences at `path` are then both parts.

    Raises:
      ValueError: a file that is missing, damaged, empty, no text or not UTF-8; another number of
        columns; empty sentences; a score that is not a number; tokens beyond the vocabulary.
    """
    if not 0 < test_share < 1:
        raise ValueError(
            f"test_share={test_share}; expected above 0 and below 1: evaluation needs sentences of "
            "its own."
        )
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}; expected 'raise' or 'skip'.")
    if embedded not in ("scenes", "prose"):
        raise ValueError(f"embedded={embedded!r}; expected 'scenes' or 'prose', or give path.")
    if not 1 <= columns <= 3:
        raise ValueError(f"columns={columns}; expected 1 (sentences), 2 (pairs) or 3 (triples).")
    if test_path and not path:
        raise ValueError(f"test_path={test_path!r} without path; expected the training file too.")
    if limit < 0:
        raise ValueError(f"limit={limit}; expected a number of sentences, or 0 for all.")
    if path.endswith(".npz"):
        found = _of_tokens(path, test_path, test_share, vocab_size, limit, learnt)
        if not (sts or classify):
            return found
        words = tasks_tokenizer_path or tokenizer_path
        more = _beside_tokens(found.train, path, sts, classify, words, on_error)
        return found._replace(more=more)
    if tasks_tokenizer_path:
        raise ValueError(
            f"tasks_tokenizer_path={tasks_tokenizer_path!r} is for token numbers in a .npz; "
            "sentences are read by the tokenizer of the training part. Leave it out."
        )
    scored: text_tasks.Scored = {}
    skipped, labels, test_labels = 0, {}, {}
    if path:
        name = Path(path).name.split(".")[0]
        train, skipped = _sentences(path, on_error)
        if learnt is not None:
            test = train
        elif test_path:
            test, _ = _sentences(test_path, on_error)
            if len(test) != len(train):
                raise ValueError(
                    f"{test_path} has {len(test)} columns and {path} has {len(train)}; expected "
                    "the same."
                )
        else:
            train, test = _divided(train, test_share, path)
        if limit:
            train, test = ([spaced(column, limit) for column in part] for part in (train, test))
    elif embedded == "prose":
        name = "prose"
        everything = [prose()[: train_size + test_size]]
        share = test_size / (train_size + test_size)
        train, test = _divided(everything, share, "the embedded prose")
    else:
        name = "scenes_text"
        (train, labels), (test, test_labels), scored = _of_scenes(
            columns, train_size, test_size, seed
        )
    if sts:
        scored = text_tasks.read_scored(sts, on_error)
    made = tokenizer.of_text(
        [sentence for column in train for sentence in column],
        learnt=learnt,
        path=tokenizer_path,
        vocab_size=vocab_size,
        lowercase=lowercase,
        cache=tokenizer_cache,
    )
    more = _tasks(name, scored, classify, on_error, made, length)
    if learnt is not None:
        whole = _source(name, train, made, length, labels, skipped)
        return with_learnt(Splits(whole, whole, more), learnt)
    of_train = _source(f"{name}/train", train, made, length, labels, skipped)
    of_test = _source(f"{name}/test", test, made, length, test_labels)
    return with_learnt(Splits(of_train, of_test, more), {"tokenizer": made.plain})


def prose() -> list[str]:
    """Sentences of the documentation that ships with Python (`pydoc_data.topics`, docstrings of the
    standard library) and numpy, in a fixed order, each once; about 17,000."""
    return [sentence for document in documents() for sentence in document]


def documents(packages: Sequence[str] = ("python", "numpy")) -> list[list[str]]:
    """The sentences of `prose` in the order of their texts, a list for each topic and docstring.

    packages: names of installed packages, whose docstrings are read without importing them;
      "python" stands for the topics of its help and the standard library.

    Raises:
      ValueError: a package that is not installed.
    """
    seen: set[str] = set()
    found = []
    for package in packages:
        for text in _texts(package):
            new = [s for s in dict.fromkeys(_prose_of(text)) if s not in seen]
            seen.update(new)
            found.append(new)
    return [document for document in found if document]


def _texts(package: str) -> Iterable[str]:
    """Topics and docstrings of a package."""
    if package == "python":
        root = Path(sysconfig.get_paths()["stdlib"])
        yield from importlib.import_module("pydoc_data.topics").topics.values()
    else:
        spec = importlib.util.find_spec(package) if package else None
        if spec is None or spec.origin is None:
            raise ValueError(f"the package {package!r} is not installed; expected one that is.")
        root = Path(spec.origin).parent
    for file in sorted(root.rglob("*.py")):
        if not {"site-packages", "test", "tests", "idlelib"} & set(file.relative_to(root).parts):
            yield from _docstrings(file)


def _docstrings(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []  # templates of code, which are no Python yet
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in found if text]


def _prose_of(text: str) -> Iterable[str]:
    """Sentences of the paragraphs of a text that are prose: no code, tables or lists of names."""
    for paragraph in re.split(r"\n\s*\n", text):
        flat = re.sub(r"\s+", " ", paragraph).strip()
        if ">>>" in flat or "::" in flat or re.search(r"[=|+*-]{3}", flat):
            continue
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", flat):
            words = sentence.split()
            plain = sum(bool(re.fullmatch(r"[A-Za-z'-]+[,.;:]?", word)) for word in words)
            complete = sentence[-1:] in (".", "!", "?") and sentence[0].isupper()
            if complete and _WORDS[0] <= len(words) <= _WORDS[1] and plain >= 0.8 * len(words):
                yield sentence


def _sentences(path: str, on_error: str) -> tuple[list[list[str]], int]:
    """(the columns of a file, without empty sentences; how many lines were left out)."""
    rows = lines.separated(path, counts=(1, 2, 3), meaning=_MEANING)
    kind = next((s for s in Path(path).suffixes if s.lower() in (".csv", ".json", ".jsonl")), "")
    if kind and len(rows[0].columns) == 1:
        logging.warning(
            "%s: each line is taken for one sentence, a header among them, for instance %r. In a "
            "file of pairs a tab divides the columns, and there is no header.",
            path,
            rows[0].columns[0][:60],
        )
    empty = [row.line for row in rows if not all(column.strip() for column in row.columns)]
    lines.refuse_empty(path, empty, on_error, "empty sentences")
    left_out = set(empty)
    kept = [row.columns for row in rows if row.line not in left_out]
    if not kept:
        raise ValueError(f"{path} holds no sentence.")
    return [[column.strip() for column in given] for given in zip(*kept)], len(empty)


def _divided(
    columns: list[list[str]], share: float, path: str
) -> tuple[list[list[str]], list[list[str]]]:
    """Train and test part. A sentence that occurs twice is in one of them."""
    place = np.array([_place(sentence) for sentence in columns[0]])
    test = place < share
    if not test.any():
        test = place == place.min()
    if test.all():
        raise ValueError(
            f"{path} has {len(place)} sentences, {len(set(columns[0]))} of them different: too few "
            "for a train and a test part. Add sentences, or give test_path."
        )

    def part(chosen: np.ndarray) -> list[list[str]]:
        return [[column[i] for i in np.flatnonzero(chosen)] for column in columns]

    return part(~test), part(test)


def _place(sentence: str) -> float:
    return int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "big") / 2**64


def _of_scenes(columns: int, train_size: int, test_size: int, seed: int):
    parts = scenes.make(
        level="easy", share=None, train_size=train_size, test_size=test_size, seed=seed
    )

    def part(number: int, source: Source):
        rng = generator(seed, 16 + number)
        rows = captions.factors(source)
        texts = [captions.sentences(rng, rows), captions.sentences(rng, rows)]
        texts.append(captions.sentences(rng, captions.contradictions(rng, rows)))
        return texts[:columns], {name: source.arrays[name] for name in ("label", "colour", "place")}

    rng = generator(seed, 18)
    count = max(test_size, 2)  # one pair has no order
    first, second, score = captions.scored_pairs(rng, captions.factors(parts.test), count)
    pairs = (captions.sentences(rng, first), captions.sentences(rng, second), score)
    return part(0, parts.train), part(1, parts.test), {"sts": pairs}


_SCENE_LABELS = {"label": 10, "colour": len(captions.COLOURS), "place": 9}


def _source(
    name: str,
    columns: Sequence[Sequence[str]],
    made: Tokenizer | WordPiece,
    length: int,
    further: Mapping[str, np.ndarray],
    skipped: int = 0,
) -> Source:
    tokens = {field: made.encode(column, length) for field, column in zip(FIELDS, columns)}
    sizes = dict.fromkeys(tokens, made.size) | {
        field: _SCENE_LABELS[field] for field in further if field in _SCENE_LABELS
    }
    made_of = from_arrays(name, {**tokens, **further}, sizes)
    return dataclasses.replace(made_of, skipped=skipped, names=list(columns[0]))


def _tasks(
    name: str,
    scored: text_tasks.Scored,
    classify: str,
    on_error: str,
    made: Tokenizer | WordPiece,
    length: int,
) -> dict[str, Source]:
    """What evaluators read: scored pairs, and sentences with classes of the path `classify`."""
    found = {
        key: _source(f"{name}/{key}", [a, b], made, length, {"score": score})
        for key, (a, b, score) in scored.items()
    }
    if classify:
        for key, one in text_tasks.read_classes(classify, on_error).items():
            given = [one.sentences, one.second] if one.second else [one.sentences]
            rows = {field: made.encode(of, length) for field, of in zip(FIELDS, given)}
            sizes = dict.fromkeys(rows, made.size) | {"label": len(one.classes)}
            found[key] = one.named(
                from_arrays(f"{name}/{key}", rows | {"label": one.labels}, sizes)
            )
    return found


def _of_tokens(
    path: str,
    test_path: str,
    test_share: float,
    vocab_size: int,
    limit: int,
    learnt: Mapping[str, Any] | None,
) -> Splits:
    name = Path(path).stem
    train = _token_arrays(path, vocab_size)
    if learnt is not None:
        whole = from_arrays(name, train, dict.fromkeys(train, vocab_size))
        return with_learnt(Splits(whole, whole), learnt)
    if test_path:
        test = _token_arrays(test_path, vocab_size)
    else:
        chosen = np.array([_place(row.tobytes().hex()) for row in train["tokens"]]) < test_share
        if chosen.all() or not chosen.any():
            raise ValueError(f"{path} has too few sentences for a test part; give test_path.")
        test = {field: rows[chosen] for field, rows in train.items()}
        train = {field: rows[~chosen] for field, rows in train.items()}

    def source(part: str, arrays: dict[str, np.ndarray]) -> Source:
        if limit:
            arrays = {field: spaced(rows, limit) for field, rows in arrays.items()}
        return from_arrays(f"{name}/{part}", arrays, dict.fromkeys(arrays, vocab_size))

    return with_learnt(Splits(source("train", train), source("test", test)), {})


def _beside_tokens(
    train: Source, path: str, sts: str, classify: str, tokenizer_path: str, on_error: str
) -> dict[str, Source]:
    """The tasks beside numbers: by the tokenizer that they are of, as long as they are."""
    if not tokenizer_path:
        raise ValueError(
            f"{path} is token numbers, and sts and classify are text; give tasks_tokenizer_path, "
            "the tokenizer of these numbers."
        )
    made, count = tokenizer.load(tokenizer_path), train.sizes["tokens"]
    if made.size > count:
        raise ValueError(
            f"{tokenizer_path} has {made.size} pieces; expected at most vocab_size={count}, the "
            f"vocabulary of {path}. Give the tokenizer of these numbers."
        )
    scored = text_tasks.read_scored(sts, on_error) if sts else {}
    length = np.shape(train.read(0)["tokens"])[0]
    return _tasks(Path(path).stem, scored, classify, on_error, made, length)


def _token_arrays(path: str, vocab_size: int) -> dict[str, np.ndarray]:
    try:
        with np.load(user_path(path), allow_pickle=False) as file:
            arrays = {field: file[field] for field in FIELDS if field in file}
            others = sorted(set(file) - set(arrays))
    except Exception as error:  # a damaged archive raises nearly anything
        raise ValueError(f"{path} is not a whole .npz archive of numbers: {error}.") from None
    if "tokens" not in arrays:
        raise ValueError(f"{path} has the arrays {', '.join(others) or 'none'}; expected tokens.")
    for field, rows in arrays.items():
        if rows.ndim != 2 or rows.dtype.kind not in "iu" or rows.size == 0:
            raise ValueError(
                f"{path}: {field} is {rows.dtype}{list(rows.shape)}; expected integers [N, T]."
            )
        most = min(vocab_size, tokenizer.MAX_VOCAB)
        if rows.min() < 0 or rows.max() >= most:
            raise ValueError(
                f"{path}: {field} goes from {rows.min()} to {rows.max()}; expected 0 to "
                f"{most - 1}. Set vocab_size to the size of the vocabulary they are of, at most "
                f"{tokenizer.MAX_VOCAB}."
            )
        empty = np.flatnonzero(~(rows > 0).any(axis=1))
        if len(empty):
            raise ValueError(
                f"{path}: row {empty[0]} of {field} is padding alone: an empty sentence."
            )
        arrays[field] = rows.astype(np.uint16)
    return arrays
