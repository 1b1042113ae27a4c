"""Sentences with concepts: what is used, how it is shuffled, given concepts."""

from collections import Counter

import numpy as np
import pytest

from cl_jax.data import concepts, tagging

SENTENCES = [
    f"The {a} {verb} the {b} before {c} calls." for a, b, c, verb in
    [("dog", "cat", "mother", "follows"), ("girl", "horse", "father", "leads"),
     ("man", "car", "brother", "drives"), ("woman", "book", "teacher", "reads"),
     ("boy", "ball", "friend", "throws"), ("child", "song", "sister", "sings")]
]  # fmt: skip


def _make(tmp_path, text, **settings):
    file = tmp_path / "text.txt"
    file.write_text(text)
    settings = dict(
        vocab_size=128, length=48, concepts_length=32, tokenizer_cache=str(tmp_path / "kept"),
        test_share=0.4,
    ) | settings  # fmt: skip
    return concepts.make(path=str(file), **settings)


def _read(source, field):
    return source.text.decode(source.arrays[field])


def test_fields_are_the_sentence_its_concepts_and_itself_shuffled(tmp_path):
    splits = _make(tmp_path, "\n".join([*SENTENCES, "No verb.", "A dog ran."]))
    assert sum(source.size for source in splits[:2]) == len(SENTENCES)
    for source in splits[:2]:
        fields = (_read(source, name) for name in ("tokens", "concepts", "shuffled"))
        for sentence, asked, moved, known, said in zip(*fields, *source.text[1:]):
            words = sentence.split()
            assert known[0].lower().rstrip(".") == " ".join(words).rstrip(" .")
            assert asked.split() == list(said)
            verb, last, *nouns = said
            assert last == "call" and tagging.lemma(words[2]) == verb
            assert nouns == [words[1], words[4], words[6]]
            assert Counter(moved.split()) == Counter(words) and moved != sentence
            places = {1, 2, 4, 6, 7}  # of nouns and verbs; the others stay
            assert all(moved.split()[i] == words[i] for i in set(range(9)) - places)
            assert {moved.split()[i] for i in (2, 7)} == {words[2], words[7]}


def test_sentences_with_one_word_repeated_are_not_used():
    def of(sentence):
        return concepts.usable(tagging.concepts(tagging.split(sentence)))

    assert of("The dog follows the cat and calls.")
    assert not of("The dog follows the cat.")  # one verb
    assert not of("A dog is a dog.")
    assert of("The dog of the man is old.")  # two nouns, no verb


def test_given_concepts_group_the_references_of_a_test_example(tmp_path):
    rows = [
        "split\tconcepts\tsentence",
        "train\tdog_N#run_V\tThe dog runs to the house.",
        "train\tcat_N#sleep_V\tA cat sleeps on the floor.",
        "dev\tball_N#throw_V#girl_N\tA girl throws the ball.",
        "dev\tgirl_N#ball_N#throw_V\tThe ball is thrown by a girl.",
        "test\tx_N\tNot read.",
    ]
    splits = _make(tmp_path, "\n".join(rows))
    assert splits.train.size == 2 and splits.test.size == 1
    assert splits.test.text.references == [
        ["A girl throws the ball.", "The ball is thrown by a girl."]
    ]
    assert splits.test.text.concepts == [["ball", "throw", "girl"]]
    assert _read(splits.train, "concepts") == ["dog run", "cat sleep"]


def test_shuffling_follows_the_sentence_alone(tmp_path):
    first = _make(tmp_path, "\n".join(SENTENCES))
    again = _make(tmp_path, "\n".join(SENTENCES[::-1]))
    for a, b in zip(first[:2], again[:2]):
        assert sorted(_read(a, "shuffled")) == sorted(_read(b, "shuffled"))


def test_errors_say_what_was_expected(tmp_path):
    text = "\n".join(SENTENCES)
    for settings, message in (
        (dict(test_share=1.0), "above 0 and below 1"),
        (dict(longest=1), "two words or more"),
        (dict(longest=4), "no usable sentence for the train part"),
    ):
        with pytest.raises(ValueError, match=message):
            _make(tmp_path, text, **settings)
    with pytest.raises(ValueError, match="line 2: an empty sentence or concept"):
        _make(tmp_path, "concepts\tsentence\na##b\tIt is.")
    with pytest.raises(ValueError, match="is not a file"):
        concepts.make(path=str(tmp_path / "none"))


def test_a_subset_keeps_its_references(tmp_path):
    from cl_jax.data.source import subset

    source = _make(tmp_path, "\n".join(SENTENCES)).train
    part = subset(source, [1])
    assert part.text.references == [source.text.references[1]]
    np.testing.assert_array_equal(part.arrays["tokens"], source.arrays["tokens"][1:2])


def test_parts_by_other_names(tmp_path):
    rows = [f"{split}\tdog#run#{i}\tThe dog {i} runs." for i, split in enumerate(
        ["Train", "train", "validation", "test"])]  # fmt: skip
    splits = _make(tmp_path, "\n".join(["split\tconcepts\tsentence", *rows]))
    assert (splits.train.size, splits.test.size) == (2, 1)
    assert splits.test.text.references == [["The dog 2 runs."]]
    with pytest.raises(ValueError, match="split is 'extra'; expected train, test or dev"):
        _make(tmp_path, "\n".join(["split\tconcepts\tsentence", "extra\tdog#run\tA dog runs."]))
