"""Sentences that a network generates, beside references: BLEU, ROUGE-L, CIDEr-D, coverage."""

import numpy as np
from absl import logging

from cl_jax.core.shapes import check_count
from cl_jax.data.source import subset
from cl_jax.data.tagging import lemma
from cl_jax.evals import Evaluator, Given, Needs, ngrams


def make(
    *, function: str = "generate", rows: int = 1024, shown: int = 3, when: str = "always"
) -> Evaluator:
    """ "generation/bleu1", "bleu4", "rouge_l", "cider" and "coverage" of the test examples.

    All words are in lower case and without punctuation. METEOR and SPICE are left out: they need
    Java and WordNet.

    function: of the method, (State, batch) -> tokens [B, T]. rows: test examples, evenly spaced,
      that sentences are generated for. shown: how many are logged. when: see `Evaluator`.

    The test source must have `Source.text`: how tokens are read, the references, the concepts.

    Raises:
      ValueError: fewer than one row.
    """
    check_count(rows=rows)

    def measure(given: Given) -> dict[str, float]:
        test = given.data.test
        if test.text is None:
            raise ValueError(
                f"{test.name} has no references; use a source of text that has some, such as "
                "'concepts', or leave generation out of config.evals.protocols."
            )
        source = subset(test, np.linspace(0, test.size - 1, min(rows, test.size)).astype(int))
        assert source.text is not None
        said = source.text.decode(np.asarray(given.rows(function, source)))
        for sentence, asked in zip(said[:shown], source.text.concepts):
            logging.info("%s: %s", ", ".join(asked), sentence)
        words = [ngrams.words_of(sentence) for sentence in said]
        known = [[ngrams.words_of(one) for one in of] for of in source.text.references]
        return {
            "generation/bleu1": ngrams.bleu(words, known, 1),
            "generation/bleu4": ngrams.bleu(words, known),
            "generation/rouge_l": ngrams.rouge_l(words, known),
            "generation/cider": ngrams.cider(words, known),
            "generation/coverage": ngrams.coverage(words, source.text.concepts, lemma),
        }

    return Evaluator(
        measure,
        Needs(functions=(function,)),
        when=when,
        better={f"generation/{name}": 1 for name in ("cider", "bleu4", "rouge_l", "coverage")},
        titles={
            "generation/cider": "generated sentences, CIDEr",
            "generation/coverage": "concepts that are in the generated sentence %",
        },
    )
