"""Sentences about the images of `scenes`, from their labels: what text methods train on without a
download.

A sentence names four factors of an image: digit, colour, row and column. Templates and synonyms put
one image into many words, so that sentences with no word in common may mean the same. How alike two
sentences are is the share of the four factors that agree.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cl_jax.data.source import Source

DIGITS = (
    ("zero", "nought"),
    ("one", "single stroke"),
    ("two", "deuce"),
    ("three", "trey"),
    ("four", "quartet"),
    ("five", "quintet"),
    ("six", "half a dozen"),
    ("seven", "septet"),
    ("eight", "octet"),
    ("nine", "ennead"),
)
COLOURS = (
    ("black", "dark"),
    ("white", "pale"),
    ("red", "crimson"),
    ("green", "emerald"),
    ("blue", "navy"),
    ("yellow", "golden"),
    ("purple", "magenta"),
    ("cyan", "turquoise"),
)
ROWS = (("top", "upper"), ("middle", "central"), ("bottom", "lower"))
COLUMNS = (("left", "western"), ("centre", "inner"), ("right", "eastern"))
TEMPLATES = (
    "a {colour} {digit} at the {row} {column}",
    "the {row} {column} has a {colour} {digit}",
    "there is a {digit} in {colour} on the {row} {column}",
    "a {digit} drawn in {colour} near the {row} {column} of the picture",
    "someone wrote {digit} with {colour} ink in the {row} part on the {column} side",
    "{colour} is the {digit} that stands {row} and {column}",
)
PROMPTS = (
    "a {digit}",
    "there is a {digit} in the picture",
    "a {digit} drawn in the picture",
    "someone wrote {digit} with ink",
)
FACTORS = ("digit", "colour", "row", "column")
_COUNTS = (len(DIGITS), len(COLOURS), len(ROWS), len(COLUMNS))


def factors(scenes: Source) -> np.ndarray:
    """[N, 4] digit, colour, row and column of the images of a part of `scenes`."""
    labels = {name: np.asarray(scenes.arrays[name]) for name in ("label", "colour", "place")}
    return np.stack(
        [labels["label"], labels["colour"], labels["place"] // 3, labels["place"] % 3], axis=1
    )


def sentences(rng: np.random.Generator, rows: np.ndarray) -> list[str]:
    """A sentence for each row of factors [N, 4], template and synonyms drawn by `rng`."""
    template = rng.integers(len(TEMPLATES), size=len(rows))
    synonym = rng.random((len(rows), len(FACTORS)))
    return [TEMPLATES[template[i]].format(**_words(rows[i], synonym[i])) for i in range(len(rows))]


def scored_pairs(
    rng: np.random.Generator, rows: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of factors and how alike they are: (rows [count, 4], rows [count, 4], float32 [count]).

    The first of a pair is drawn from `rows`; each factor of the second is drawn again with
    probability one half.
    """
    first = rows[rng.integers(len(rows), size=count)]
    second = first.copy()
    for factor, number in enumerate(_COUNTS):
        again = rng.random(count) < 0.5
        second[again, factor] = rng.integers(number, size=again.sum())
    return first, second, (first == second).mean(axis=1).astype(np.float32)


def contradictions(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """Rows [N, 4] that differ from the given ones in exactly one factor, drawn by `rng`."""
    changed = rows.copy()
    factor = rng.integers(len(FACTORS), size=len(rows))
    counts = np.array(_COUNTS)[factor]
    step = 1 + rng.integers(counts - 1)
    at = np.arange(len(rows))
    changed[at, factor] = (rows[at, factor] + step) % counts
    return changed


def prompts() -> tuple[list[str], np.ndarray]:
    """Sentences that name a digit alone, by each prompt and each word for it, and their digits."""
    made = [
        (prompt.format(digit=word), digit)
        for digit, words in enumerate(DIGITS)
        for prompt in PROMPTS
        for word in words
    ]
    return [sentence for sentence, _ in made], np.array([digit for _, digit in made], np.int32)


def _words(row: np.ndarray, synonym: np.ndarray) -> Mapping[str, str]:
    tables: Sequence[Sequence[Sequence[str]]] = (DIGITS, COLOURS, ROWS, COLUMNS)
    return {
        name: table[value][int(chance * len(table[value]))]
        for name, table, value, chance in zip(FACTORS, tables, row, synonym)
    }
