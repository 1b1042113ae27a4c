"""Measures of generated sentences against sacrebleu, rouge-score and figures of pycocoevalcap."""

import numpy as np
import pytest

from cl_jax.evals import ngrams


def _corpus(seed):
    """Six sentences of three to eight of eight words, with one to three references each."""
    rng = np.random.default_rng(seed)

    def sentence():
        return [f"w{i}" for i in rng.integers(0, 8, rng.integers(3, 9))]

    return [sentence() for _ in range(6)], [
        [sentence() for _ in range(rng.integers(1, 4))] for _ in range(6)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_sacrebleu_s(seed):
    """Streams of references of unequal number are filled up with None there."""
    sacrebleu = pytest.importorskip("sacrebleu")
    candidates, references = _corpus(seed)
    for one, known in zip(candidates[:3], references):
        known.append([*one[:5], "w9"])  # so that runs of four words are shared
    streams = [
        [" ".join(known[i]) if i < len(known) else None for known in references]
        for i in range(max(map(len, references)))
    ]
    given = [" ".join(words) for words in candidates]
    expected = sacrebleu.corpus_bleu(
        given, streams, tokenize="none", smooth_method="none", force=True
    )
    assert ngrams.bleu(candidates, references) == pytest.approx(expected.score / 100, abs=1e-6)
    assert expected.score > 0


def test_rouge_with_one_reference_is_the_usual_f1():
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    candidates, references = _corpus(0)
    one = scorer.RougeScorer(["rougeL"])
    expected = np.mean(
        [
            one.score(" ".join(known[0]), " ".join(words))["rougeL"].fmeasure
            for words, known in zip(candidates, references)
        ]
    )
    first = [known[:1] for known in references]
    assert ngrams.rouge_l(candidates, first, beta=1.0) == pytest.approx(expected)


# (CIDEr, ROUGE-L, BLEU-2) by pycocoevalcap 1.2 of the same sentences.
PUBLISHED = {
    0: (0.900191018, 0.442263499, 0.368748066),
    1: (1.286821179, 0.535887066, 0.348734939),
    2: (0.729082332, 0.348011437, 0.181765141),
}


@pytest.mark.parametrize("seed", PUBLISHED)
def test_figures_of_the_captioning_metrics(seed):
    candidates, references = _corpus(seed)
    found = (
        ngrams.cider(candidates, references),
        ngrams.rouge_l(candidates, references),
        ngrams.bleu(candidates, references, 2),
    )
    np.testing.assert_allclose(found, PUBLISHED[seed], atol=1e-6)


def test_a_copy_is_perfect_and_another_s_reference_is_not():
    _, references = _corpus(1)
    copies = [max(known, key=len) for known in references]  # of four words or more
    assert ngrams.bleu(copies, references) == pytest.approx(1)
    assert ngrams.rouge_l(copies, references) == pytest.approx(1)
    assert ngrams.cider(copies, [[one] for one in copies]) == pytest.approx(10)
    others = copies[1:] + copies[:1]
    assert ngrams.bleu(others, references, 2) < 0.5
    assert ngrams.rouge_l(others, references) < 0.6
    assert ngrams.cider(others, references) < 2


def test_coverage_counts_lemmas():
    said = [["the", "dogs", "ran"], ["a", "cat"], []]
    asked = [["dog", "run"], ["cat", "mouse"], []]
    lemma = {"dogs": "dog", "ran": "run"}
    assert ngrams.coverage(said, asked, lambda w: lemma.get(w, w)) == 0.75
    assert np.isnan(ngrams.coverage([["a"]], [[]], str))


def test_words_are_lower_case_without_punctuation():
    assert ngrams.words_of("The dog's well-known, isn't it? (Yes)") == [
        "the", "dog's", "well-known", "isn't", "it", "yes",
    ]  # fmt: skip


def test_errors_say_what_was_expected():
    for f in (ngrams.bleu, ngrams.rouge_l, ngrams.cider):
        with pytest.raises(ValueError, match="1 sentences and references for 2"):
            f([["a"]], [[["a"]], [["b"]]])
        with pytest.raises(ValueError, match="no reference"):
            f([["a"]], [[]])
    with pytest.raises(ValueError, match="2 sets of concepts"):
        ngrams.coverage([["a"]], [["a"], ["b"]], str)
