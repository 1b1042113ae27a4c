"""How near generated sentences are to references: BLEU, ROUGE-L, CIDEr-D and the coverage of
concepts. Words in, shares from 0 to 1 out (CIDEr from 0 to 10).

METEOR and SPICE are left out: they need Java programs, WordNet and a scene-graph parser.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

Words = Sequence[str]


def words_of(text: str) -> list[str]:
    """Words of a sentence in lower case, without punctuation, as the captioning metrics count."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def ngrams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words occurs."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]], n: int = 4) -> float:
    """BLEU of a corpus: the geometric mean of the clipped precisions of runs of 1 to n words, times
    the brevity penalty exp(1 - r/c) where the candidates have fewer words c than the references r.

    Of several references the one nearest in length counts, the shorter of two. Nothing is smoothed:
    without a common run of n words the figure is 0.

    Args:
      candidates: N sentences. references: for each, one or more.

    Raises:
      ValueError: another number of references, or a sentence without any.

    Reference: Papineni et al. 2002, equations 2 and 3; sacrebleu without tokenisation and
      smoothing.
    """
    _check(candidates, references)
    right, asked = np.zeros(n), np.zeros(n)
    length = expected = 0
    for words, known in zip(candidates, references):
        length += len(words)
        expected += min((abs(len(one) - len(words)), len(one)) for one in known)[1]
        for k in range(1, n + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for one in known:
                most |= ngrams(one, k)
            found = ngrams(words, k)
            right[k - 1] += sum((found & most).values())
            asked[k - 1] += sum(found.values())
    if not right.all():
        return 0.0
    penalty = min(0.0, 1 - expected / length)
    return float(np.exp(penalty + np.log(right / asked).mean()))


def rouge_l(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]], beta: float = 1.2
) -> float:
    """ROUGE-L: the F-measure of the longest common subsequence, mean over sentences.

    F = (1 + beta^2) P R / (R + beta^2 P), with precision P and recall R each the best over
    references, as the captioning metrics have it; beta = 1 with one reference is the usual F1.

    Raises:
      ValueError: as `bleu`.

    Reference: Lin 2004, equations 2 to 4.
    """
    _check(candidates, references)
    scores = []
    for words, known in zip(candidates, references):
        common = [common_length(words, one) for one in known]
        p = max(common) / max(len(words), 1)
        r = max(c / max(len(one), 1) for c, one in zip(common, known))
        scores.append((1 + beta**2) * p * r / (r + beta**2 * p) if p and r else 0.0)
    return float(np.mean(scores))


def common_length(a: Words, b: Words) -> int:
    """Words of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def cider(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    n: int = 4,
    sigma: float = 6.0,
) -> float:
    """CIDEr-D: ten times the mean cosine of tf-idf vectors of runs of 1 to n words, over runs'
    lengths, references and sentences.

    Counts of the candidate are clipped at those of the reference, and exp(-d^2 / (2 sigma^2))
    punishes a difference d of their lengths. Document frequencies are those of these references:
    figures of sets of different size do not compare, and a single sentence gives 0.

    Raises:
      ValueError: as `bleu`.

    Reference: Vedantam et al. 2015, arXiv 1411.5726, equation 9 (CIDEr-D).
    """
    _check(candidates, references)
    frequency: Counter[tuple[str, ...]] = Counter()
    for known in references:
        frequency.update({run for one in known for k in range(1, n + 1) for run in ngrams(one, k)})
    documents = math.log(len(references))

    def weights(words: Words, k: int) -> dict[tuple[str, ...], float]:
        found = ngrams(words, k)
        return {
            run: count * (documents - math.log(max(1, frequency[run])))
            for run, count in found.items()
        }

    def similarity(words: Words, other: Words, k: int) -> float:
        x, y = weights(words, k), weights(other, k)
        norms = _norm(x) * _norm(y)
        if not norms:
            return 0.0
        dot = sum(min(value, y[run]) * y[run] for run, value in x.items() if run in y)
        return dot / norms * math.exp(-((len(words) - len(other)) ** 2) / (2 * sigma**2))

    scores = [
        np.mean([similarity(words, one, k) for one in known for k in range(1, n + 1)])
        for words, known in zip(candidates, references)
    ]
    return 10 * float(np.mean(scores))


def coverage(
    candidates: Sequence[Words], concepts: Sequence[Words], lemma: Callable[[str], str]
) -> float:
    """The share of a sentence's concepts of which a word with the same lemma occurs in it, mean
    over sentences that have concepts; NaN where none has.

    Raises:
      ValueError: another number of concepts than sentences.

    Reference: Lin et al. 2020, arXiv 1911.03705, CommonGen's "coverage".
    """
    if len(candidates) != len(concepts):
        raise ValueError(f"{len(candidates)} sentences and {len(concepts)} sets of concepts.")
    shares = []
    for words, asked in zip(candidates, concepts):
        if asked:
            said = {lemma(word) for word in words}
            shares.append(np.mean([lemma(one) in said for one in asked]))
    return float(np.mean(shares)) if shares else math.nan


def _norm(vector: dict[tuple[str, ...], float]) -> float:
    return math.sqrt(sum(value**2 for value in vector.values()))


def _check(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    if len(candidates) != len(references) or not candidates:
        raise ValueError(
            f"{len(candidates)} sentences and references for {len(references)}; expected as many, "
            "one at least."
        )
    if not all(references):
        raise ValueError("a sentence has no reference; expected one or more for each.")
