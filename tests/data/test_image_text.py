"""Pictures with sentences: the user's tables, the embedded captions, and what may be wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from cl_jax.data import captions, image_text, tokenizer
from cl_jax.data.source import labels_of

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}


def folder(tmp_path, count=12, table="captions.csv", header="file,caption,kind", lines=None):
    """Pictures of one colour, and a table that names them."""
    made = []
    for i in range(count):
        colour = list(COLOURS)[i % 3]
        file = tmp_path / "pictures" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 7), COLOURS[colour]).save(file)
        made.append(f"pictures/{i}.png,a {colour} picture,{colour}")
    content = [header, *(made if lines is None else lines(made))] if header else lines(made)
    (tmp_path / table).write_text("\n".join(content) + "\n")
    return str(tmp_path)


def made(path, tmp_path, **settings):
    given = dict(
        path=path,
        image_size=8,
        length=8,
        vocab_size=100,
        tokenizer_cache=str(tmp_path / "cache"),
        workers=2,
    )
    return image_text.make(**given | settings)


@pytest.mark.parametrize("cache_bytes", [2**31, 0])
def test_pictures_lie_beside_their_captions(tmp_path, cache_bytes):
    splits = made(
        folder(tmp_path), tmp_path, label_column="kind", cache_bytes=cache_bytes, test_share=0.3
    )
    model = tokenizer.load(next((tmp_path / "cache").glob("*.model")))
    assert splits.train.size + splits.test.size == 12
    for source in splits[:2]:
        for i in range(source.size):
            one = source.read(i)
            name = source.classes["label"][one["label"]]
            assert model.decode(one["tokens"][None]) == [f"a {name} picture"]
            np.testing.assert_array_equal(one["image"], np.full((8, 8, 3), COLOURS[name]))
        assert labels_of(source).tolist() == [source.read(i)["label"] for i in range(source.size)]
        assert (source.arrays is None) == (cache_bytes == 0)
    prompts = splits.more["prompts"].arrays
    assert prompts["label"].tolist() == [k for k in range(3) for _ in image_text.TEMPLATES]
    assert splits.more["prompts"].sizes == {"tokens": model.size, "label": 3}


def test_several_captions_of_one_picture(tmp_path):
    def lines(made):
        return [
            json.dumps(
                {"file": f"pictures/{i}.png", "caption": [f"a {i}", f"the {i}"][: 1 + i % 2]}
            )
            for i in range(len(made))
        ]

    path = folder(tmp_path, table="captions.jsonl", header="", lines=lines)
    splits = made(path, tmp_path)
    tokens = splits.train.arrays["tokens"]
    assert tokens.shape == (splits.train.size, 2, 8)
    same = (tokens[:, 0] == tokens[:, 1]).all(axis=1)
    assert same.any() and not same.all()  # one caption is repeated, two are kept


def test_a_column_divides_the_pictures(tmp_path):
    path = folder(
        tmp_path,
        header="file,caption,Split",
        lines=lambda made: [
            line.rsplit(",", 1)[0] + (",val" if i < 4 else ",train") for i, line in enumerate(made)
        ],
    )
    splits = made(path, tmp_path)
    assert (splits.train.size, splits.test.size) == (8, 4)


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("file,caption", lambda m: ["pictures/99.png,a cat"], "1 captions without their picture"),
        ("file,caption", lambda m: ["pictures\\0.png,a cat"], r"Write / in place of \\ in their"),
        ("file,caption", lambda m: ["pictures/1.png,"], "empty file name or caption in line 2"),
        ("image,caption", lambda m: ["pictures/1.png,a"], "line 2 has no 'file'; it has image"),
        ("file,caption", lambda m: ["pictures/1.png,a,b"], "3 columns where the header has 2"),
        ("file,caption", lambda m: ["../secret.png,a"], "leads out of the folder"),
        ("file,caption", lambda m: ["pictures/1.png,a"], "no picture for its test part"),
        ("file,caption", lambda m: [], "holds no caption"),
        (
            "file,caption,split",
            lambda m: ["pictures/1.png,a,train", "pictures/2.png,a,later"],
            "holds 'later'; expected train or test",
        ),
        (
            "file,caption,split",
            lambda m: ["pictures/1.png,a,train", "pictures/1.png,a,test"],
            "another split or label, in line 3",
        ),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, header, lines, message):
    with pytest.raises(ValueError, match=message):
        made(folder(tmp_path, header=header, lines=lines), tmp_path)


@pytest.mark.parametrize("cache_bytes", [2**31, 0])
def test_damaged_pictures_are_named_or_left_out(tmp_path, cache_bytes):
    path = folder(tmp_path)
    (tmp_path / "pictures" / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"pictures/3\.png"):
        made(path, tmp_path, cache_bytes=cache_bytes)
    splits = made(path, tmp_path, cache_bytes=cache_bytes, on_error="skip")
    assert splits.train.size + splits.test.size == 11
    assert splits.train.skipped + splits.test.skipped == 1


def test_other_mistakes(tmp_path):
    path = folder(tmp_path)
    (tmp_path / "empty").mkdir()
    for settings, message in (
        (dict(path=str(tmp_path / "none")), "is neither a folder nor a table"),
        (dict(path=str(tmp_path / "empty")), "holds none of captions.csv"),
        (dict(path=str(tmp_path / "pictures" / "1.png")), "ends in .csv, .tsv or .jsonl"),
        (dict(channels=2), "expected 1 or 3"),
        (dict(limit=-1), "limit=-1; expected a number of pictures"),
        (dict(path="", image_size=64), "leave both out|Leave both out"),
    ):
        with pytest.raises(ValueError, match=message):
            made(**dict(path=path, tmp_path=tmp_path) | settings)


def test_embedded_captions_name_the_digit(tmp_path):
    splits = image_text.make(
        train_size=32, test_size=16, length=20, tokenizer_cache=str(tmp_path / "cache")
    )
    model = tokenizer.load(next((tmp_path / "cache").glob("*.model")))
    for source in (splits.train, splits.more["prompts"]):
        for sentence, digit in zip(model.decode(source.arrays["tokens"]), source.arrays["label"]):
            assert any(word in sentence for word in captions.DIGITS[digit])
    assert set(splits.more["prompts"].arrays["label"]) == set(range(10))


@pytest.mark.parametrize("between, end", [(";", "\n"), (", ", "\r\n"), (",", "\r"), ("\t", "\n")])
def test_tables_of_other_programs(tmp_path, between, end):
    table = tmp_path / "captions.csv"
    folder(tmp_path)
    table.write_bytes(table.read_text().replace(",", between).replace("\n", end).encode())
    splits = made(str(tmp_path), tmp_path, label_column="kind")
    assert splits.train.size + splits.test.size == 12 and splits.train.sizes["label"] == 3


def test_columns_the_wrong_way_round_are_told(tmp_path):
    path = folder(tmp_path, header="caption,file", lines=lambda _: ["0.png," + "a b " * 70])
    with pytest.raises(ValueError, match=r"line 2: .* is not a file.s name. Are the columns"):
        made(path, tmp_path)


def test_damage_found_in_training_is_replaced_under_skip(tmp_path, caplog):
    path = folder(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(0, 12, 3):  # all red ones, of noise
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(
            tmp_path / "pictures" / f"{i}.png"
        )
    file = tmp_path / "pictures" / "0.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    file.write_bytes(data)
    given = dict(label_column="kind", cache_bytes=0, test_share=0.3)
    for source in made(path, tmp_path, on_error="skip", **given)[:2]:
        rows = [source.read(i) for i in range(source.size)]
        assert [row["label"] for row in rows] == labels_of(source).tolist()
    assert "replaced by the next image of its class" in caplog.text
    with pytest.raises(ValueError, match=r"0\.png: "):
        [source.read(i) for source in made(path, tmp_path, **given)[:2] for i in range(source.size)]
