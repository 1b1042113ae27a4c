"""Sentences that a network generates, beside references: BLEU, ROUGE-L, CIDEr-D, coverage."""

import jax
import numpy as np

from cl_jax.core.shapes import check_count
from cl_jax.data.source import Splits, Text, subset
from cl_jax.data.tagging import lemma
from cl_jax.evals import Evaluator, Given, Needs, ngrams


def make(
    *, function: str = "generate", rows: int = 1024, shown: int = 32, when: str = "always"
) -> Evaluator:
    """ "generation/bleu1", "bleu4", "rouge_l", "cider" and "coverage" of the test examples.

    All words are in lower case and without punctuation. METEOR and SPICE are left out: they need
    Java and WordNet.

    function: of the method, (State, batch) -> tokens [B, T]. rows: test examples, evenly spaced,
      that sentences are generated for. shown: how many stand in the workdir's generated.txt at the
      end of a run, with their concepts and a reference. when: see `Evaluator`.

    The test source must have `Source.text`: how tokens are read, the references, the concepts.

    Raises:
      ValueError: fewer than one row, or none shown.
    """
    check_count(rows=rows, shown=shown)

    def check(data: Splits) -> None:
        if data.test.text is None:
            raise ValueError(
                f"{data.test.name} has no references; use a source of text that has some, such as "
                "'concepts'."
            )

    def asked(given: Given, most: int) -> tuple[Text, list[str]]:
        """The text of the first `most` of the chosen examples, and what is said of them."""
        test = given.data.test
        chosen = np.linspace(0, test.size - 1, min(rows, test.size)).astype(int)
        source = subset(test, chosen[:most])
        assert source.text is not None
        return source.text, source.text.decode(np.asarray(given.rows(function, source)))

    def draw(given: Given) -> None:
        text, said = asked(given, shown)
        told = (
            f"{', '.join(concepts)}: {sentence}\n    {references[0]}\n"
            for concepts, sentence, references in zip(text.concepts, said, text.references)
        )
        if jax.process_index() == 0:
            (given.workdir / "generated.txt").write_text("".join(told), encoding="utf-8")

    def measure(given: Given) -> dict[str, float]:
        text, said = asked(given, rows)
        words = [ngrams.words_of(sentence) for sentence in said]
        known = [[ngrams.words_of(one) for one in of] for of in text.references]
        return {
            "generation/bleu1": ngrams.bleu(words, known, 1),
            "generation/bleu4": ngrams.bleu(words, known),
            "generation/rouge_l": ngrams.rouge_l(words, known),
            "generation/cider": ngrams.cider(words, known),
            "generation/coverage": ngrams.coverage(words, text.concepts, lemma),
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
        draw=draw,
        check=check,
    )
