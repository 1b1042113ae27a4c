"""What a network is asked about, without a network: a record of its data says what it reads."""

import json
import shutil
import wave
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cl_jax.core.errors import ConfigError
from cl_jax.core.tokens import MARKS
from cl_jax.data.source import from_arrays, labels_of, names_of
from cl_jax.training import configs, experiment, fingerprint, loop, stages
from cl_jax.training.inputs import Known, check_fields, source_of
from cl_jax.training.trained import Trained


def known(data=None, needs=("image",), sizes=None, **fields):
    fields = fields or {"image": np.zeros((8, 8, 3), np.uint8)}
    config = ConfigDict({"data": data or {"name": "folder", "path": "photos"}, "seed": 0})
    return Known("runs/mine", config, needs, fields, sizes or {})


def test_arrays_become_the_types_that_were_trained_on():
    grey = np.zeros((3, 8, 8, 1), np.uint8)
    assert source_of(grey, known())[0].read(0)["image"].shape == (8, 8, 3)
    tokens = known(needs=("tokens",), sizes={"tokens": 9}, tokens=np.zeros(4, np.uint16))
    source, bad = source_of({"tokens": [[1, 2, 3, 0]]}, tokens)
    assert source.arrays["tokens"].dtype == np.uint16 and source.sizes == {"tokens": 9} and not bad


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.zeros((3, 8, 8, 3), np.float32), "image is float32; expected uint8, 0 to 255"),
        (np.zeros((8, 8, 3), np.uint8), r"expected uint8 \[N, 8, 8, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "one or more rows"),
    ],
)
def test_arrays_that_are_something_else_are_refused(inputs, words):
    with pytest.raises(ConfigError, match=words):
        source_of(inputs, known())


def test_files_of_images_are_read_as_the_run_reads_them(tmp_path):
    Image.new("L", (20, 10), 7).save(tmp_path / "a.png")
    for inputs in (str(tmp_path), [tmp_path / "a.png"]):
        source, _ = source_of(inputs, known())
        np.testing.assert_array_equal(source.read(0)["image"], np.full((8, 8, 3), 7, np.uint8))


@pytest.mark.parametrize("told", [None, (0, 2046)])
def test_images_of_16_bits_are_read_in_the_range_of_the_run(told, tmp_path):
    """Whatever the numbers in those that are asked about."""
    for place, top in (("mine", 4095), ("other", 1023)):
        (tmp_path / place).mkdir()
        for i in range(2):
            picture = Image.fromarray(np.full((8, 8), top, np.uint16))
            picture.save(tmp_path / place / f"{i}.png")
    data = {"name": "folder", "path": str(tmp_path / "mine"), "image_size": 8}
    run, splits = began(tmp_path / "run", data | {"value_range": told})
    assert splits.train.read(0)["image"].max() == 255
    other = tmp_path / "other"
    for inputs in (str(other), str(other / "0.png"), [other / "0.png"]):
        assert source_of(inputs, run)[0].read(0)["image"].max() == (64 if told is None else 128)


def shown(root, top, names):
    """A folder of things shown in grey and in depth of 16 bits."""
    for way, kind in (("grey", np.uint8), ("depth", np.uint16)):
        for i, name in enumerate(names):
            file = root / way / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), (i, top)[way == "depth"], kind)).save(file)
    return root


def test_pictures_that_belong_together_are_read_as_the_run_reads_them(tmp_path):
    mine = shown(tmp_path / "mine", 4095, ("a/1", "a/2", "b/1", "b/2"))
    data = {"name": "aligned", "path": str(mine), "image_size": 8, "shown": ("grey", "depth")}
    run, splits = began(tmp_path / "run", data | {"channels": (1, 1)}, "image")
    assert splits.train.names[0].startswith("grey/a/")
    source, _ = source_of(shown(tmp_path / "other", 1023, ("c/9",)), run)
    check_fields(source, run)
    assert names_of(source) == ["grey/c/9.png"]
    np.testing.assert_array_equal(source.read(0)["image"][0, 0], [0, 64])
    with pytest.raises(ConfigError, match=r"is several pictures, .* folder that has grey, depth"):
        source_of([mine / "grey" / "a" / "1.png"], run)
    with pytest.raises(ValueError, match="has no folder of that name; it has a, b"):
        source_of(mine / "grey", run)


def test_sentences_are_asked_about_by_a_path_or_arrays():
    run = known({"name": "scenes"}, ("tokens",), tokens=np.zeros(4, np.uint16))
    with pytest.raises(ConfigError, match=r"data of runs/mine \(scenes\) have no path"):
        source_of("lines.txt", run)
    with pytest.raises(ConfigError, match="reads tokens, not images"):
        source_of(["a.png"], run)
    both = known(None, ("image", "tokens"), image=np.zeros((8, 8, 3)), tokens=np.zeros(4))
    with pytest.raises(ConfigError, match="the network reads image, tokens; give"):
        source_of(np.zeros((3, 4)), both)


def test_numbers_of_another_vocabulary_are_refused():
    run = known(None, ("tokens",), {"tokens": 9}, tokens=np.zeros(4, np.uint16))
    other = from_arrays("other", {"tokens": np.zeros((2, 4), np.uint16)}, {"tokens": 7})
    with pytest.raises(ConfigError, match="7 values in other and 9 in the data of runs/mine"):
        check_fields(other, run)
    with pytest.raises(ConfigError, match="other has the fields sound; the network"):
        check_fields(from_arrays("other", {"sound": np.zeros((2, 4))}, {}), run)


LINES = [f"the {colour} {thing}" for colour in ("red", "pale") for thing in ("cat", "dog", "bird")]
OTHER = ["ovum quoque parvum", "the red dog", "aqua est in mari"]


def began(workdir, data, *needs):
    """The record of a run of this data section, as it is when the run begins."""
    workdir.mkdir()
    config = ConfigDict({"data": data, "seed": 0})
    splits = experiment.load_data(config)
    fingerprint.check(workdir, config, splits)
    example = {name: np.asarray(value) for name, value in splits.train.read(0).items()}
    return Known(str(workdir), config, needs or tuple(example), example, splits.train.sizes), splits


def text(path, rows, **settings):
    path.write_text("".join(f"{row}\n" for row in rows))
    words = {"length": 16, "vocab_size": 48, "tokenizer_cache": str(path.parent / "cache")}
    return {"name": "text", "path": str(path)} | words | settings


@pytest.mark.parametrize("kept", [True, False])
def test_what_chose_the_training_part_chooses_nothing_of_other_data(kept, tmp_path):
    data = text(tmp_path / "mine.txt", LINES * 2, validation=0.5, fraction=0.5, sts="gone.tsv")
    run, splits = began(tmp_path / "run", data | {"sts": ""})
    run.config.data.sts = "gone.tsv"  # evaluators alone read it
    if not kept:
        (tmp_path / "run" / "learnt.json").unlink()
    text(tmp_path / "other.txt", OTHER)
    source, _ = source_of(tmp_path / "other.txt", run)
    assert list(source.names) == OTHER
    text(tmp_path / "other.txt", LINES)  # read by the tokens of the half that was trained on
    source, _ = source_of(tmp_path / "other.txt", run)
    for name, row in zip(splits.train.names, splits.train.arrays["tokens"]):
        np.testing.assert_array_equal(source.arrays["tokens"][LINES.index(name)], row)


@pytest.mark.parametrize("change", ["gone", "rewritten"])
def test_other_sentences_are_read_by_the_tokens_of_the_run(change, tmp_path):
    run, splits = began(tmp_path / "run", text(tmp_path / "mine.txt", LINES))
    if change == "gone":
        (tmp_path / "mine.txt").unlink()
    else:
        text(tmp_path / "mine.txt", OTHER)
    text(tmp_path / "other.txt", LINES)
    source, _ = source_of(tmp_path / "other.txt", run)
    check_fields(source, run)
    for part in splits[:2]:
        for name, row in zip(part.names, part.arrays["tokens"]):
            np.testing.assert_array_equal(source.arrays["tokens"][LINES.index(name)], row)


class Asked(Exception):
    """What `build` was asked for."""


@pytest.mark.parametrize("saved", [True, False])
def test_a_run_with_a_checkpoint_needs_its_vocabulary_file_no_more(saved, tmp_path, monkeypatch):
    vocabulary, workdir = tmp_path / "bert" / "vocab.txt", tmp_path / "run"
    vocabulary.parent.mkdir()
    vocabulary.write_text("\n".join([*MARKS, *sorted({w for row in LINES for w in row.split()})]))
    data = text(tmp_path / "mine.txt", LINES, tokenizer_path=str(vocabulary))
    run, splits = began(workdir, data)
    full = configs.load("simcse:file,debug").unlock()
    full.data = run.config.data
    (workdir / "config.json").write_text(json.dumps(configs.plain(full)))
    if saved:
        (workdir / "last" / "1").mkdir(parents=True)
    shutil.rmtree(vocabulary.parent)

    def build(config, *_):
        raise Asked(config)

    for module in (loop, stages):
        monkeypatch.setattr(module, "build", build)
    trained = SimpleNamespace(config=full, workdir=workdir)
    for read in (
        lambda: Trained.data.func(trained),
        lambda: stages.load(workdir),
        lambda: loop.train(full, workdir),
    ):
        try:
            again = read()
        except Asked as asked:
            config = asked.args[0]
            assert (config.data.tokenizer_path == str(workdir / "learnt.json")) == saved
        except ValueError as error:
            assert not saved and "is not a file. Give a sentencepiece model" in str(error)
        else:
            assert saved
            for ours, theirs in zip(again[:2], splits[:2]):
                np.testing.assert_array_equal(ours.arrays["tokens"], theirs.arrays["tokens"])
    assert full.data.tokenizer_path == str(vocabulary)


def of_sentences(name, path, rows):
    """The data section of a source whose sentences have no test file."""
    path.parent.mkdir(exist_ok=True)
    data = text(path, rows, name=name)
    if name == "passages":
        text(path, [*rows, "", *rows[::-1]])
        data["sentences"] = 2
    elif name == "concepts":
        text(path, ["sentence\tconcepts", *(f"{row}\tdog#{i}" for i, row in enumerate(rows))])
        data["test_share"] = 0.5
    else:
        names = [f"{i}.png" for i in range(len(rows))]
        for file in names:
            Image.new("L", (8, 8)).save(path.parent / file)
        text(path, ["file\tcaption", *(f"{file}\t{row}" for file, row in zip(names, rows))])
        data |= {"test_share": 0.5, "image_size": 8}
    return data


@pytest.mark.parametrize("name", ["passages", "concepts", "image_text"])
def test_a_tokenizer_is_never_trained_on_other_data(name, tmp_path):
    """Sentences in another file have the tokens of the run; where these were not kept, there is
    nothing to read them by."""
    mine = of_sentences(name, tmp_path / "mine" / "captions.tsv", LINES)
    run, splits = began(tmp_path / "run", mine)
    of_sentences(name, tmp_path / "other" / "captions.tsv", [*OTHER, *LINES])
    other = tmp_path / "other" / "captions.tsv"

    def tokens(source):
        field = "passage" if name == "passages" else "tokens"
        rows = [np.asarray(source.read(i)[field]) for i in range(source.size)]
        return {row.tobytes() for found in rows for row in found.reshape(-1, found.shape[-1])}

    source, _ = source_of(other, run)
    check_fields(source, run)
    assert tokens(splits.train) <= tokens(source) and len(tokens(source)) > len(LINES)
    (tmp_path / "run" / "learnt.json").unlink()
    with pytest.raises(ValueError, match=r"the run did not keep .* Give the command that trained"):
        source_of(other, run)


@pytest.mark.parametrize("name", ["text", "tabular"])
def test_a_run_of_embedded_data_that_kept_nothing_has_no_file_to_learn_from_again(name, tmp_path):
    data = {"text": {"embedded": "scenes", "train_size": 9, "test_size": 3}, "tabular": {}}[name]
    run, _ = began(tmp_path / "run", {"name": name, "path": ""} | data)
    (tmp_path / "run" / "learnt.json").unlink()
    text(tmp_path / "other.txt", LINES)
    with pytest.raises(ValueError, match=r"the run did not keep .* Give the command that trained"):
        source_of(tmp_path / "other.txt", run)


def recording(path, rate=8000, samples=400):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, samples, "NONE", ""))
        file.writeframes(np.full(samples, 1000, np.int16).tobytes())
    return str(path)


def film(path, grey=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.full((2, 4, 4), grey, np.uint8))
    return str(path)


def test_other_recordings_are_one_whole_at_the_rate_of_the_run(tmp_path, caplog):
    for name in ("0_ann_0", "0_ann_1", "1_ben_0", "1_ben_1"):
        recording(tmp_path / "mine" / f"{name}.wav")
    data = {"name": "audio", "path": str(tmp_path / "mine"), "test_pattern": "_0"}
    data["pattern"] = r"(?P<label>\d)_(?P<who>[a-z]+)_"
    run, _ = began(tmp_path / "run", data, "audio", "length")
    recording(tmp_path / "other" / "train" / "7_eve_5.wav", 16000)
    recording(tmp_path / "other" / "test" / "b.wav", 16000)
    (tmp_path / "other" / "damaged.wav").write_bytes(b"RIFF")
    source, _ = source_of(tmp_path / "other", run)
    assert list(source.names) == ["test/b.wav", "train/7_eve_5.wav"]
    assert source.arrays["length"].tolist() == [200, 200] and "damaged.wav" in caplog.text
    assert source.arrays["who"].tolist() == [-1, 0]
    one = recording(tmp_path / "alone.WAV")
    source, _ = source_of(one, run)
    assert list(source.names) == ["alone.WAV"] and source.sizes == {}
    assert "did not keep" not in caplog.text
    (tmp_path / "run" / "learnt.json").unlink()
    assert source_of(one, run)[0].size == 1 and "did not keep that of its" in caplog.text


def test_other_recordings_and_films_have_classes_of_their_own(tmp_path, caplog):
    for write, ending, data in (
        (recording, "wav", {"name": "audio"}),
        (film, "npy", {"name": "video", "frames": 2, "image_size": 4}),
    ):
        mine, other = tmp_path / f"mine.{ending}", tmp_path / f"other.{ending}"
        for name in ("a/1", "a/2", "b/1", "b/2"):
            write(mine / f"{name}.{ending}")
        run, _ = began(tmp_path / f"run.{ending}", {**data, "path": str(mine)}, *data)
        for name in ("train/x/1", "train/y/1", "test/z/1"):
            write(other / f"{name}.{ending}")
        source, _ = source_of(other, run)
        assert source.size == 3 and sorted(source.arrays["label"].tolist()) == [0, 1, 2]
        assert sorted(source.names) == [
            f"{name}.{ending}" for name in ("test/z/1", "train/x/1", "train/y/1")
        ]
        write(other / "train" / f"beside.{ending}")
        source, _ = source_of(other, run)
        assert source.size == 4 and "label" not in source.sizes and "no labels:" in caplog.text
        assert source_of(other / "test" / "z" / f"1.{ending}", run)[0].size == 1


def pairs(folder, header, *rows):
    folder.mkdir()
    for i in range(len(rows)):
        Image.new("L", (8, 8), 9 * i).save(folder / f"{i}.png")
    (folder / "captions.tsv").write_text("\n".join([header, *rows]) + "\n")
    return str(folder)


@pytest.mark.parametrize("cache_bytes", [2**31, 0])
def test_other_pictures_with_captions_need_no_labels_and_no_parts(cache_bytes, tmp_path):
    rows = [f"{i}.png\t{line}\t{'ab'[i % 2]}" for i, line in enumerate(LINES)]
    mine = pairs(tmp_path / "mine", "file\tcaption\tkind", *rows)
    data = text(tmp_path / "words", [], name="image_text", image_size=8, label_column="kind")
    data |= {"path": mine, "test_share": 0.5, "cache_bytes": cache_bytes}
    run, _ = began(tmp_path / "run", data, "image", "tokens")
    rows = [f"{i}.png\tthe dog\tsome" for i in range(3)]
    other = pairs(tmp_path / "other", "file\tcaption\tsplit", *rows)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "other" / "1.png")
    damaged = bytearray((tmp_path / "other" / "1.png").read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 40] = bytes(40)
    (tmp_path / "other" / "1.png").write_bytes(damaged)
    source, _ = source_of(other, run)
    assert list(source.names) == ["0.png", "2.png"] and source.sizes.keys() == {"tokens"}
    assert [source.read(i)["image"].max() for i in range(2)] == [0, 18]
    check_fields(source, run)


def test_labels_of_other_data_are_of_their_own(tmp_path):
    example = {"image": np.zeros((8, 8, 3), np.uint8), "label": np.int32(0)}
    run = known(None, ("image", "label"), {"label": 10}, **example)
    arrays = {"image": np.zeros((2, 8, 8, 3), np.uint8), "label": np.zeros(2, np.int32)}
    check_fields(from_arrays("other", arrays, {"label": 2}), run)


def molecules(folder, atoms):
    """A folder of one graph, a path of nodes with these tags."""
    folder.mkdir()
    lines = [(i, i + 1) for i in range(1, len(atoms))]
    (folder / "M_A.txt").write_text("".join(f"{a}, {b}\n" for a, b in lines))
    (folder / "M_graph_indicator.txt").write_text("1\n" * len(atoms))
    (folder / "M_node_labels.txt").write_text("".join(f"{atom}\n" for atom in atoms))
    return str(folder)


def test_tags_of_other_graphs_have_the_numbers_of_the_run(tmp_path):
    data = {"name": "graphs", "path": molecules(tmp_path / "mine", (6, 8, 7))}
    run, _ = began(tmp_path / "run", data, "node", "edge")
    source, _ = source_of(molecules(tmp_path / "few", (7, 8)), run)
    check_fields(source, run)
    assert source.read(0)["node"].tolist() == [2, 3]
    with pytest.raises(ValueError, match=r"tags 9, which did not occur .* expected 6, 7, 8"):
        source_of(molecules(tmp_path / "strange", (6, 9)), run)
    (tmp_path / "run" / "learnt.json").unlink()
    with pytest.raises(ValueError, match="the run did not keep the tags"):
        source_of(tmp_path / "few", run)


@pytest.mark.parametrize(("own", "rows"), [("keep", 2), ("raise", 1)])
def test_other_graphs_without_edges_have_a_row_where_the_run_s_had(own, rows, tmp_path):
    data = {"name": "graphs", "path": molecules(tmp_path / "mine", (6, 6)), "on_error": own}
    run, _ = began(tmp_path / "run", data, "node", "edge")
    other = molecules(tmp_path / "other", (6, 6, 6))
    (tmp_path / "other" / "M_A.txt").write_text("2, 3\n")
    (tmp_path / "other" / "M_graph_indicator.txt").write_text("1\n2\n2\n")
    source, _ = source_of(other, run)
    assert source.size == rows and names_of(source)[-1] == "other/1"


def test_degrees_of_other_graphs_mean_the_same(tmp_path, caplog):
    data = {"name": "graphs", "path": molecules(tmp_path / "mine", (6, 6)), "features": "degree"}
    run, _ = began(tmp_path / "run", data, "node", "edge")
    source, _ = source_of(molecules(tmp_path / "longer", (6, 6, 6)), run)
    check_fields(source, run)
    assert source.read(0)["node"].tolist() == [2, 2, 2] and "of degree 2" in caplog.text


def test_other_rows_are_measured_by_the_training_part_of_the_run(tmp_path):
    mine, other = tmp_path / "mine.csv", tmp_path / "other.csv"
    mine.write_text(
        "x,y,same,label\n" + "".join(f"{i},{i * i},3,{'ab'[i % 2]}\n" for i in range(9))
    )
    run, splits = began(tmp_path / "run", {"name": "tabular", "path": str(mine), "validation": 0.3})
    rows = {row.tobytes() for part in splits[:2] for row in part.arrays["row"]}
    mine.rename(other)
    source, _ = source_of(other, run)
    assert source.size == 9 and rows <= {row.tobytes() for row in source.arrays["row"]}
    other.write_text("same,y,x,label\n4,4,2,B\n3,9,3,b\n")
    source, _ = source_of(other, run)
    assert source.arrays["row"][1].tobytes() in rows and source.arrays["row"][0, 2] == 0
    assert source.classes == {"label": ["a", "b", "B"]} and list(labels_of(source)) == [2, 1]
