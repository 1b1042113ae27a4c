"""What holds of every source that reads the user's own folder: its parts, its classes, what it may
not open, and how it names that."""

import os
import wave

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cl_jax.core.errors import ConfigError
from cl_jax.data import (
    aligned,
    audio,
    folder,
    graphs,
    image_text,
    market,
    packed,
    source,
    text,
    video,
)
from cl_jax.data.source import labels_of
from cl_jax.training import experiment


def picture(file):
    Image.fromarray(np.full((8, 8, 3), len(str(file)) % 200, np.uint8)).save(file)


def recording(file):
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes((8000 * np.sin(np.arange(400))).astype("<i2").tobytes())


def film(file):
    np.save(file, np.full((2, 4, 4, 3), 7, np.uint8))


def of_folder(path, **settings):
    return folder.make(path=str(path), image_size=8, **settings)


def of_audio(path, **settings):
    return audio.make(path=str(path), **settings)


def of_video(path, **settings):
    return video.make(path=str(path), frames=2, image_size=4, **settings)


KINDS = {
    "folder": (of_folder, picture, ".png"),
    "audio": (of_audio, recording, ".wav"),
    "video": (of_video, film, ".npy"),
}
each_kind = pytest.mark.parametrize("make, write, suffix", KINDS.values(), ids=KINDS)


def tree(root, write, suffix, **counts):
    """Files of each folder: {"train/cat": 3} has train/cat/0.png to 2.png."""
    for place, count in counts.items():
        for i in range(count):
            file = root / place / f"{i}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file)


@each_kind
@pytest.mark.parametrize("parts", [("train", "valid"), ("Train", "Test"), ("training", "dev")])
def test_parts_by_any_name_are_parts_and_their_folders_the_classes(
    tmp_path, make, write, suffix, parts
):
    counts = {f"{part}/{name}": 3 for part in parts for name in ("cat", "dog")}
    tree(tmp_path, write, suffix, **counts)
    splits = make(tmp_path)
    assert splits.train.size == splits.test.size == 6
    assert splits.train.sizes["label"] == 2
    assert np.bincount(labels_of(splits.test)).tolist() == [3, 3]


@each_kind
def test_a_train_folder_alone_is_no_class(tmp_path, make, write, suffix):
    tree(tmp_path, write, suffix, **{"train/cat": 3, "train/dog": 3})
    splits = make(tmp_path)
    assert splits.train.sizes["label"] == 2 and splits.train.size + splits.test.size == 6
    assert all(np.bincount(labels_of(part)).min() >= 1 for part in splits[:2])


@each_kind
def test_train_may_be_a_class(tmp_path, make, write, suffix):
    tree(tmp_path, write, suffix, plane=3, train=3)
    splits = make(tmp_path)
    assert splits.train.sizes["label"] == 2 and splits.train.size + splits.test.size == 6


@each_kind
def test_the_held_out_share_is_of_each_class_and_never_all_of_it(tmp_path, make, write, suffix):
    tree(tmp_path, write, suffix, common=30, rare=2, single=1)
    splits = make(tmp_path, test_share=0.2)
    train, test = (np.bincount(labels_of(part), minlength=3) for part in splits[:2])
    assert train.min() >= 1 and test[1] == 1 and test[2] == 0  # in the order of the alphabet
    assert (train + test).tolist() == [30, 2, 1]


@each_kind
def test_what_is_no_plain_file_inside_is_named_and_not_opened(tmp_path, make, write, suffix):
    tree(tmp_path / "set", write, suffix, a=4, b=4)
    tree(tmp_path / "set", write, suffix, **{"@eaDir": 1, ".hidden": 1, "a/__MACOSX": 1})
    outside = tmp_path / f"secret{suffix}"
    write(outside)
    os.mkfifo(tmp_path / "set" / "a" / f"pipe{suffix}")  # reading it would wait for ever
    os.symlink(outside, tmp_path / "set" / "a" / f"link{suffix}")
    (tmp_path / "set" / "b" / f"\x1b[2J{suffix}").write_bytes(b"")
    with pytest.raises(ValueError) as error:
        make(tmp_path / "set")
    for words in ("not a regular file", "a link that leads out of the folder", r"\x1b[2J"):
        assert words in str(error.value)
    assert "\x1b" not in str(error.value)
    splits = make(tmp_path / "set", on_error="skip")
    assert splits.train.size + splits.test.size == 8 and splits.train.sizes["label"] == 2
    assert splits.train.skipped + splits.test.skipped == 3


def test_a_part_of_a_pair_or_a_person_may_not_lead_out_either(tmp_path):
    tree(tmp_path, picture, ".png", **{"rgb/a": 2, "depth/a": 2})
    picture(tmp_path / "secret.png")
    (tmp_path / "depth/a/0.png").unlink()
    os.symlink(tmp_path / "secret.png", tmp_path / "depth/a/0.png")
    with pytest.raises(ValueError, match=r"a/0\.png: a link that leads out"):
        aligned.make(path=str(tmp_path), shown=("rgb", "depth"))
    for part in market.PARTS.values():
        (tmp_path / part).mkdir()
        picture(tmp_path / part / "0001_c1s1_0_0.png")
    os.mkfifo(tmp_path / "query" / "0002_c1s1_0_0.png")
    with pytest.raises(ValueError, match=r"0002_c1s1_0_0\.png: not a regular file"):
        market.make(path=str(tmp_path), height=8, width=8)


@pytest.mark.parametrize(
    "make", [of_folder, of_audio, of_video, lambda path: market.make(path=path)]
    + [lambda path: packed.make(path=path), lambda path: graphs.make(path=path)]
    + [lambda path: text.make(path=path), lambda path: image_text.make(path=path)],
)  # fmt: skip
def test_a_home_that_is_not_known_is_a_sentence(make):
    with pytest.raises(ConfigError, match="home directory that is not known here"):
        make("~nobody-of-that-name/set")


@pytest.mark.parametrize("make", [of_folder, of_audio, of_video, graphs.make, market.make])
def test_an_empty_path_is_not_the_current_folder(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.wav", "b.wav"):
        (recording if name.endswith("wav") else picture)(tmp_path / name)
    with pytest.raises(ValueError, match="path is empty"):
        make(path="")


def test_a_recording_or_picture_without_a_label_has_minus_one(tmp_path):
    for name in ("cat_0", "cat_1", "dog_0", "dog_1", "_0", "_1"):
        recording(tmp_path / f"{name}.wav")
    splits = audio.make(path=str(tmp_path), pattern=r"(?P<label>[a-z]+)?_(\d)")
    found = np.concatenate([labels_of(part) for part in splits[:2]])
    assert sorted(found) == [-1, -1, 0, 0, 1, 1] and splits.train.sizes["label"] == 2
    lines = ['{"file": "a.png", "caption": "a", "kind": "x"}']
    lines += [f'{{"file": "{name}.png", "caption": "a", "kind": null}}' for name in "bc"]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    given = dict(path=str(tmp_path), image_size=8, vocab_size=20, label_column="kind")
    splits = image_text.make(**given, test_share=0.3)
    found = np.concatenate([labels_of(part) for part in splits[:2]])
    assert sorted(found) == [-1, -1, 0]
    with pytest.raises(ValueError, match=r"expected one \{\} in each"):
        image_text.make(**given, templates=("a {0}",))
    with (tmp_path / "captions.jsonl").open("a") as file:
        file.write('\n{"file": "a.png", "caption": null, "kind": "x"}')
    with pytest.raises(ValueError, match="empty file name or caption in line 4"):
        image_text.make(**given)


def test_a_cell_without_an_end_is_one_sentence(tmp_path):
    (tmp_path / "captions.csv").write_text('file,caption\na.png,"' + "x" * 200_000)
    with pytest.raises(ValueError, match=r"field larger than field limit.*quotation mark"):
        image_text.make(path=str(tmp_path))


def test_an_unlabelled_part_is_trained_on_where_it_is_asked_for(tmp_path):
    tree(tmp_path, picture, ".png", **{"train/a": 3, "train/b": 3, "test/a": 1, "unlabeled": 4})
    data = dict(name="folder", path=str(tmp_path), image_size=8)
    for cache_bytes in (2**32, 0):
        section = data | {"unlabeled": True, "cache_bytes": cache_bytes}
        splits = experiment.load_data(ConfigDict(dict(data=section, seed=0)))
        labels = labels_of(splits.train)
        assert labels.tolist() == [0, 0, 0, 1, 1, 1, -1, -1, -1, -1]
        assert [int(splits.train.read(i)["label"]) for i in range(10)] == labels.tolist()
        assert splits.train.names[6] == "unlabeled/0.png" and splits.test.size == 1
    assert experiment.load_data(ConfigDict(dict(data=data, seed=0))).train.size == 6
    with pytest.raises(ConfigError, match="folder has no unlabelled part; expected a folder"):
        data["path"] = str(tmp_path / "train")
        experiment.load_data(ConfigDict(dict(data=data | {"unlabeled": True}, seed=0)))


def test_a_source_marks_the_settings_that_only_evaluators_read():
    def make(*, path: str = "", sts: "source.ForEvaluation[str]" = "", n: "No" = ""):  # noqa: F821
        pass

    def resolved(*, path: str = "", more: source.ForEvaluation[str] | None = None):
        pass

    assert source.for_evaluation(text.make) == ["sts", "classify", "tasks_tokenizer_path"]
    assert source.for_evaluation(image_text.make) == ["templates"]
    assert source.for_evaluation(resolved) == ["more"]
    assert source.for_evaluation(make) == []  # a name that is nowhere: nothing is known
