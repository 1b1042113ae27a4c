"""The light tagger: concepts of sentences, lemmas."""

import pytest

from cl_jax.data import tagging
from cl_jax.data.tagging import NOUN, VERB


@pytest.mark.parametrize(
    "sentence, verbs, nouns",
    [
        ("The function returns a list of the names that are found.", "return find",
         "function list name"),
        ("Young women in red dresses are dancing on a large stage.", "dance",
         "woman dress stage"),
        ("She gave the dog a bone and walked home.", "give walk", "dog bone home"),
        ("If the file does not exist, an error is raised.", "exist raise", "file error"),
        ("The running man stopped.", "stop", "man"),
        ("It can check the test of the data type.", "check", "test type"),
    ],
)  # fmt: skip
def test_concepts_of_sentences(sentence, verbs, nouns):
    """Auxiliaries and words before a noun are none; of a run of nouns the last counts."""
    words = tagging.split(sentence)
    found = tagging.concepts(words)
    assert " ".join(c.lemma for c in found if c.kind == VERB) == verbs
    assert " ".join(c.lemma for c in found if c.kind == NOUN) == nouns
    assert [c.place for c in found] == sorted(c.place for c in found)


def test_lemmas():
    for word, base in {
        "running": "run", "makes": "make", "tried": "try", "written": "write", "boxes": "box",
        "children": "child", "bodies": "body", "class": "class", "Dogs": "dog", "status": "status",
    }.items():  # fmt: skip
        assert tagging.lemma(word) == base


def test_words_and_marks_are_split():
    assert tagging.split("Don't stop, well-known (x_1)!") == [
        "Don't", "stop", ",", "well-known", "(", "x", "_", "1", ")", "!",
    ]  # fmt: skip
