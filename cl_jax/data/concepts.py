"""`concepts`: sentences with their concepts, the nouns and verbs of each.

    sentences.txt     one sentence a line; concepts are found by `data.tagging`
    commongen.tsv     a header with "concepts" (joined by #, perhaps with _N or _V), "sentence" and
                      perhaps "split" (train, dev or test)

Without a file: the documentation that comes with Python, numpy, scipy and scikit-learn; it differs
between their versions. Fields, uint16 token numbers padded by 0: "tokens" [T], the sentence;
"concepts" [C], the lemmas of its concepts, verbs first; "shuffled" [T], the sentence with its nouns
in another order among their places and its verbs among theirs. `sizes["tokens"]` is the vocabulary.
`Source.text` has references and concepts for evaluators.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cl_jax.data import lines, tagging, text, tokenizer
from cl_jax.data.parts import role, stem
from cl_jax.data.source import Source, Splits, Text, from_arrays, with_learnt
from cl_jax.data.tagging import NOUN, VERB
from cl_jax.data.text_tasks import DEV
from cl_jax.data.tokenizer import Tokenizer
from cl_jax.data.wordpiece import WordPiece


class Sentence(NamedTuple):
    """A sentence; its concepts; itself with concepts in another order; other right sentences."""

    words: str
    concepts: list[str]
    shuffled: str
    references: list[str]


def make(
    *,
    path: str = "",
    packages: Sequence[str] = ("python", "numpy", "scipy", "sklearn"),
    length: int = 32,
    concepts_length: int = 24,
    longest: int = 20,
    vocab_size: int = 2000,
    lowercase: bool = True,
    tokenizer_path: str = "",
    tokenizer_cache: str = "",
    test_share: float = 0.1,
    limit: int = 0,
    learnt: Mapping[str, Any] | None = None,
) -> Splits:
    """Sentences with concepts.

    Args:
      path: the text; "" for the embedded documentation.
      packages: whose documentation that is, see `data.text.documents`.
      length, concepts_length: T and C, start and end included; longer rows are cut.
      longest: words; plain sentences with more are left out.
      vocab_size, lowercase, tokenizer_path, tokenizer_cache: as of `text`.
      test_share: of plain sentences, and of files without a split, by a hash of the sentence. Rows
        of "dev" are the test part, or those of "test" where there is no dev. Test rows with the
        same concepts are one example with several references.
      limit: sentences of each part at most; 0 for all.
      learnt: see `Source`: {"tokenizer"}. The sentences at `path` are then both parts.

    A plain sentence is used where it has two nouns or two verbs, and left out where all its nouns,
    or all its verbs, are one word (Zhou et al. 2021, arXiv 2011.07956, and the authors' code).

    Raises:
      ValueError: a file that is missing, damaged or no UTF-8 text; no such columns; a row without
        concepts or sentence; no usable sentence for a part; a setting out of range.
    """
    if not 0 < test_share < 1 or longest < 2 or limit < 0:
        raise ValueError(
            f"test_share={test_share}, longest={longest}, limit={limit}; expected a share above 0 "
            "and below 1, two words or more, and a limit of at least 0."
        )
    share = test_share if learnt is None else 0.0
    train, test = (
        _given(path, share)
        if path and _has_concepts(path)
        else _plain(path, packages, share, longest)
    )
    if learnt is not None:
        train = test = train + test
    if limit:
        train, test = train[:limit], test[:limit]
    for part, found in (("train", train), ("test", test)):
        if not found:
            raise ValueError(
                f"{path or 'the embedded text'} has no usable sentence for the {part} part; "
                "expected sentences with two different nouns or verbs."
            )
    made = tokenizer.of_text(
        [given for one in train for given in (one.words, " ".join(one.concepts))],
        learnt=learnt,
        path=tokenizer_path,
        vocab_size=vocab_size,
        lowercase=lowercase,
        cache=tokenizer_cache,
    )
    name = "concepts" if path else "prose_concepts"
    if learnt is not None:
        whole = _source(name, train, made, length, concepts_length)
        return with_learnt(Splits(whole, whole), learnt)
    of_train = _source(f"{name}/train", train, made, length, concepts_length)
    of_test = _source(f"{name}/test", test, made, length, concepts_length)
    return with_learnt(Splits(of_train, of_test), {"tokenizer": made.plain})


def usable(concepts: Sequence[tagging.Concept]) -> bool:
    """Whether a sentence has two nouns or two verbs, and neither of these is one word repeated."""
    sets = [{c.lemma for c in concepts if c.kind == kind} for kind in (NOUN, VERB)]
    return max(map(len, sets)) >= 2 and 1 not in map(len, sets)


def shuffled(words: Sequence[str], concepts: Sequence[tagging.Concept], seed: int) -> str:
    """The sentence with its nouns in a random other order among the nouns' places, and its verbs
    among the verbs'; where it has neither two different nouns nor verbs, with all its words so."""
    kinds = [[c.place for c in concepts if c.kind == kind] for kind in (NOUN, VERB)]
    places = [of for of in kinds if len({words[i].lower() for i in of}) > 1]
    rng = np.random.Generator(np.random.Philox(key=[seed, 20]))  # 64 bits: a sentence's hash
    found = list(words)
    for of in places or [list(range(len(words)))]:
        old = [words[i] for i in of]
        if len({word.lower() for word in old}) < 2:
            break  # a single word has no other order
        new = old
        while [word.lower() for word in new] == [word.lower() for word in old]:
            new = [old[i] for i in rng.permutation(len(old))]
        for place, word in zip(of, new):
            found[place] = word
    return " ".join(found)


def lemmas(concepts: Sequence[tagging.Concept]) -> list[str]:
    """Lemmas, verbs first, each as often as it occurs."""
    return [c.lemma for kind in (VERB, NOUN) for c in concepts if c.kind == kind]


def _plain(
    path: str, packages: Sequence[str], share: float, longest: int
) -> tuple[list[Sentence], list[Sentence]]:
    given = (
        [row.strip() for row in lines.read(path) if row.strip()]
        if path
        else [sentence for one in text.documents(packages) for sentence in one]
    )
    parts: tuple[list[Sentence], list[Sentence]] = ([], [])
    for sentence in dict.fromkeys(given):
        words = tagging.split(sentence)
        if len(words) > longest:
            continue
        found = tagging.concepts(words)
        if usable(found):
            seed = _hash(sentence)
            one = Sentence(" ".join(words), lemmas(found), shuffled(words, found, seed), [sentence])
            parts[seed / 2**64 < share].append(one)
    logging.info(
        "%d of %d sentences have concepts that can change places.",
        len(parts[0]) + len(parts[1]),
        len(given),
    )
    return parts


def _has_concepts(path: str) -> bool:
    first = next(iter(lines.read(path)), "")
    return {"concepts", "sentence"} <= {column.strip().lower() for column in first.split("\t")}


def _given(path: str, share: float) -> tuple[list[Sentence], list[Sentence]]:
    rows = lines.separated(path, counts=(2, 3), meaning="concepts, sentence and perhaps split")
    header = [column.strip().lower() for column in rows[0].columns]
    at = {name: header.index(name) for name in header}
    given = {row.columns[at["split"]].strip() for row in rows[1:]} if "split" in at else set()
    splits = {name: role(name) for name in given if name}
    if strange := [name for name, part in splits.items() if part not in ("train", "test")]:
        raise ValueError(f"{path}: split is {strange[0]!r}; expected train, test or dev.")
    held = {name for name in splits if stem(name) in DEV}
    held = held or {name for name, part in splits.items() if part == "test"}
    train: list[Sentence] = []
    test: dict[tuple[str, ...], Sentence] = {}
    for row in rows[1:]:
        concepts = [
            one.split("_")[0].strip() for one in row.columns[at["concepts"]].lower().split("#")
        ]
        sentence = row.columns[at["sentence"]].strip()
        if not sentence or not all(concepts):
            raise ValueError(f"{path}, line {row.line}: an empty sentence or concept.")
        split = row.columns[at["split"]].strip() if "split" in at else ""
        seed = _hash(" ".join(sorted(concepts)))
        testing = split in held if splits else seed / 2**64 < share
        if not testing and splits.get(split, "train") != "train":
            continue
        words = tagging.split(sentence)
        key = tuple(sorted(concepts))
        if testing and key in test:
            test[key].references.append(sentence)
            continue
        moved = shuffled(words, tagging.concepts(words), _hash(sentence))
        one = Sentence(" ".join(words), concepts, moved, [sentence])
        if testing:
            test[key] = one
        else:
            train.append(one)
    return train, list(test.values())


def _source(
    name: str,
    sentences: Sequence[Sentence],
    made: Tokenizer | WordPiece,
    length: int,
    concepts_length: int,
) -> Source:
    arrays = {
        "tokens": made.encode([one.words for one in sentences], length),
        "concepts": made.encode([" ".join(one.concepts) for one in sentences], concepts_length),
        "shuffled": made.encode([one.shuffled for one in sentences], length),
    }
    return dataclasses.replace(
        from_arrays(name, arrays, dict.fromkeys(arrays, made.size)),
        text=Text(
            made.decode,
            [one.references for one in sentences],
            [one.concepts for one in sentences],
        ),
    )


def _hash(sentence: str) -> int:
    return int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "big")
