"""Recordings of a folder: formats, rates, labels, parts, and an error for each kind of bad file."""

import wave

import numpy as np
import pytest

from cl_jax.data import audio

RATE = 8000


def _tone(seconds=0.1, rate=RATE, hertz=440.0, level=0.5):
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def _write(file, samples, rate=RATE, width=2):
    """A WAV file of [S] or [S, channels] floats."""
    samples = np.atleast_2d(np.asarray(samples).T).T
    top = 2 ** (8 * width - 1)
    whole = np.clip(np.rint(samples * top), -top, top - 1).astype(np.int64)
    if width == 1:
        data = (whole + 128).astype(np.uint8).tobytes()
    else:
        data = whole.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(samples.shape[1])
        opened.setsampwidth(width)
        opened.setframerate(rate)
        opened.writeframes(data)


def _folder(tmp_path, names=("a/1.wav", "a/2.wav", "b/1.wav", "b/2.wav")):
    for i, name in enumerate(names):
        _write(tmp_path / name, _tone(0.05 + 0.01 * i))
    return str(tmp_path)


@pytest.mark.parametrize("width, error", [(1, 0.005), (2, 2e-5), (3, 1e-6), (4, 1e-6)])
def test_every_width_of_wav_is_the_same_wave(tmp_path, width, error):
    tone = _tone()
    _write(tmp_path / "a.wav", np.stack([tone, 0.5 * tone], axis=1), width=width)
    found = audio.read(tmp_path / "a.wav")
    assert found.rate == RATE and found.samples.dtype == np.float32
    np.testing.assert_allclose(found.samples, 0.75 * tone, atol=error)


@pytest.mark.parametrize("suffix, subtype", [("flac", "PCM_16"), ("wav", "FLOAT"), ("ogg", None)])
def test_other_formats(tmp_path, suffix, subtype):
    soundfile = pytest.importorskip("soundfile")
    tone = _tone(0.5)
    file = tmp_path / f"a.{suffix}"
    soundfile.write(file, tone, RATE, subtype=subtype)
    found = audio.read(file)
    assert found.rate == RATE
    np.testing.assert_allclose(found.samples, tone, atol=0.1 if suffix == "ogg" else 5e-5)


def test_folders_are_labels(tmp_path):
    splits = audio.make(path=_folder(tmp_path), test_share=0.25)
    train, test = splits.train, splits.test
    assert train.size + test.size == 4 and test.size >= 1 and train.size >= 1
    assert train.sizes == {"label": 2}
    for source in (train, test):
        assert source.classes == {"label": ("a", "b")}
        for i in range(source.size):
            row = source.read(i)
            assert row["audio"].shape == (640,) and not row["audio"][row["length"] :].any()
            assert row["label"] == (row["length"] > 500)
            tone = np.rint(_tone(row["length"] / RATE) * 2**15)
            np.testing.assert_allclose(row["audio"][: row["length"]], tone, atol=1)


def test_a_pattern_reads_labels_and_parts(tmp_path):
    names = [f"{d}_{who}_{i}.wav" for d in (0, 7) for who in ("theo", "george") for i in range(3)]
    splits = audio.make(
        path=_folder(tmp_path, names),
        pattern=r"(?P<label>\d)_(?P<speaker>[a-z]+)_\d+",
        test_pattern=r"_0\.wav$",
    )
    assert splits.test.size == 4 and splits.train.size == 8
    assert splits.train.sizes == {"label": 2, "speaker": 2}
    assert splits.train.classes == {"label": ("0", "7"), "speaker": ("george", "theo")}
    np.testing.assert_array_equal(splits.test.arrays["label"], [0, 0, 1, 1])
    np.testing.assert_array_equal(splits.test.arrays["speaker"], [0, 1, 0, 1])


def test_folders_train_and_test_are_the_parts(tmp_path):
    path = _folder(tmp_path, ("train/a/1.wav", "train/b/1.wav", "test/b/2.wav"))
    splits = audio.make(path=path)
    assert (splits.train.size, splits.test.size) == (2, 1)
    np.testing.assert_array_equal(splits.test.arrays["label"], [1])


def test_a_label_that_the_test_part_writes_in_another_way_is_refused(tmp_path, caplog):
    path = _folder(tmp_path / "x", ("train/Anna/1.wav", "train/ben/1.wav", "test/anna/1.wav"))
    with pytest.raises(ValueError, match=r"train has Anna, ben, test has anna besides. .*labels=F"):
        audio.make(path=path)
    assert audio.make(path=path, labels=False).train.sizes == {}
    path = _folder(tmp_path / "y", ("a_x_1.wav", "b_x_1.wav", "a_y_0.wav"))
    given = dict(path=path, test_pattern="0.wav")
    splits = audio.make(**given, pattern="(?P<label>.)_(?P<speaker>.)")
    assert splits.test.arrays["speaker"].tolist() == [1]  # speakers may be in one part alone
    splits = audio.make(**given, pattern="_(?P<label>.)_", limit=2)
    assert splits.test.arrays["label"].tolist() == [1]
    assert "the labels of its parts differ: train has x, test has y besides" in caplog.text


def test_the_part_of_a_recording_depends_on_its_path_alone(tmp_path):
    names = [f"{i}.wav" for i in range(40)]
    before = audio.make(path=_folder(tmp_path / "x", names), test_share=0.3)
    _write(tmp_path / "x" / "more.wav", _tone())
    after = audio.make(path=str(tmp_path / "x"), test_share=0.3)
    lengths = [set(source.arrays["length"]) for source in (before.train, before.test)]
    assert lengths[0] <= set(after.train.arrays["length"]) | {800}
    assert lengths[1] <= set(after.test.arrays["length"]) | {800}
    assert "label" not in before.train.sizes


@pytest.mark.parametrize("parts", [("",), ("train/", "test/")])
def test_few_recordings_of_each_part_are_opened_for_a_trial(tmp_path, parts, monkeypatch):
    names = [f"{part}{label}/{i}.wav" for part in parts for label in "abc" for i in range(9)]
    path, opened = _folder(tmp_path, names), []
    read = audio.read
    monkeypatch.setattr(audio, "read", lambda file: opened.append(file) or read(file))
    found = audio.make(path=path, test_share=0.5, limit=4)
    assert [part.size for part in found[:2]] == [4, 4] and len(opened) == 8
    whole = audio.make(path=path, test_share=0.5)
    for few, all_of in zip(found[:2], whole[:2]):
        assert set(few.names) < set(all_of.names)
        assert set(few.arrays["label"].tolist()) == {0, 1, 2} and few.sizes["label"] == 3
        labels = dict(zip(all_of.names, all_of.arrays["label"]))
        assert few.arrays["label"].tolist() == [labels[name] for name in few.names]
    with pytest.raises(ValueError, match="limit=-1"):
        audio.make(path=path, limit=-1)


def test_rates_are_made_one(tmp_path):
    _write(tmp_path / "a.wav", _tone(0.5))
    _write(tmp_path / "b.wav", _tone(0.5, rate=22050), rate=22050)
    with pytest.raises(ValueError, match=r"a.wav has 8000 .* b.wav 22050. Set sample_rate=8000"):
        audio.make(path=str(tmp_path), test_share=0.5)
    splits = audio.make(path=str(tmp_path), test_share=0.5, sample_rate=RATE)
    for source in splits[:2]:
        (wave_,), (length,) = source.arrays["audio"], source.arrays["length"]
        assert length == 4000
        tone = _tone(0.5) * 2**15
        np.testing.assert_allclose(wave_[200:-200], tone[200:-200], atol=400)


def test_what_the_lower_rate_does_not_hold_is_filtered_out(tmp_path):
    for name in ("a", "b"):
        _write(tmp_path / f"{name}.wav", _tone(0.5, rate=16000, hertz=6000.0), rate=16000)
    with_tone = audio.make(path=str(tmp_path), test_share=0.5, sample_rate=RATE).train
    assert np.abs(with_tone.arrays["audio"][0, 200:-200]).max() < 0.02 * 2**15


def test_long_recordings_are_cut(tmp_path):
    splits = audio.make(path=_folder(tmp_path), test_share=0.25, seconds=0.055)
    lengths = np.concatenate([source.arrays["length"] for source in splits[:2]])
    assert sorted(lengths) == [400, 440, 440, 440]


def test_clipped_recordings_are_kept_and_told(tmp_path, caplog):
    _write(tmp_path / "a.wav", _tone())
    _write(tmp_path / "b.wav", np.clip(4 * _tone(), -1, 1))
    with caplog.at_level("WARNING", logger="absl"):
        splits = audio.make(path=str(tmp_path), test_share=0.5)
    assert splits.train.size + splits.test.size == 2
    assert "in 1 of 2 recordings, such as b.wav" in caplog.text


def _floats(file):
    """A header of 32-bit floats and 4 bytes of them, NaN."""
    body = b"WAVEfmt " + bytes([16, 0, 0, 0, 3, 0, 1, 0]) + (8000).to_bytes(4, "little")
    body += (32000).to_bytes(4, "little") + bytes([4, 0, 32, 0]) + b"data" + bytes([4, 0, 0, 0])
    body += np.float32(np.nan).tobytes()
    file.write_bytes(b"RIFF" + len(body).to_bytes(4, "little") + body)


def _truncated(file):
    _write(file, _tone())
    file.write_bytes(file.read_bytes()[:-100])


BAD = {
    "silent": (lambda file: _write(file, np.zeros(100)), "is silent"),
    "faint": (lambda file: _write(file, np.full(100, 1 / 2**15)), "is silent"),
    "no samples": (lambda file: _write(file, np.zeros((0, 1))), "has no samples"),
    "empty": (lambda file: file.write_bytes(b""), "an empty file"),
    "text": (lambda file: file.write_text("hello, this is no sound"), "not a WAV file"),
    "half a header": (lambda file: file.write_bytes(b"RIFF\0\0"), "not a WAV file"),
    "truncated": (_truncated, "not a WAV file that can be read .1500 bytes"),
    "nan": (_floats, "NaN or inf"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_bad_recording_is_named(tmp_path, name):
    make, text = BAD[name]
    path = _folder(tmp_path)
    make(tmp_path / "b" / "3.wav")
    if name == "nan":
        pytest.importorskip("soundfile")
    with pytest.raises(ValueError, match=f"b/3.wav: .*{text}") as error:
        audio.make(path=path)
    assert "1 of the recordings" in str(error.value) and "on_error=skip" in str(error.value)
    splits = audio.make(path=path, on_error="skip")
    assert splits.train.skipped + splits.test.skipped == 1


def test_all_bad(tmp_path):
    for name in "ab":
        _write(tmp_path / f"{name}.wav", np.zeros(10))
    with pytest.raises(ValueError, match="none of its 2 recordings"):
        audio.make(path=str(tmp_path), on_error="skip")


def test_settings_and_layouts(tmp_path):
    path = _folder(tmp_path / "x")
    _write(tmp_path / "y" / "a" / "1.wav", _tone())
    _write(tmp_path / "y" / "b" / "1.wav", _tone())
    _write(tmp_path / "y" / "beside.wav", _tone())
    _write(tmp_path / "one" / "a.wav", _tone())
    (tmp_path / "none").mkdir()
    for section, text in (
        (dict(path=str(tmp_path / "missing")), "is not a folder"),
        (dict(path=str(tmp_path / "none")), "holds no recording; their names end in .wav"),
        (dict(path=str(tmp_path / "one")), "one recording, too few"),
        (dict(path=str(tmp_path / "y")), "beside its label folders, such as beside.wav"),
        (dict(path=path, pattern="("), "not a regular expression"),
        (dict(path=path, pattern="a"), "no named group"),
        (dict(path=path, pattern="(?P<label>z)"), "not found in 4 of the 4 paths"),
        (dict(path=path, pattern="(?P<length>.)"), "'length' is not a name for a label"),
        (dict(path=path, test_pattern="wav"), "found in all of the 4 paths"),
        (dict(path=path, test_share=0.0), "above 0 and below 1"),
        (dict(path=path, sample_rate=-1), "a number above 0, or 0"),
        (dict(path=path, max_clipped=2.0), "a share from 0 to 1"),
        (dict(path=path, on_error="ignore"), "'raise' or 'skip'"),
    ):
        with pytest.raises(ValueError, match=text):
            audio.make(**section)


@pytest.mark.parametrize("parts", [("train", "valid"), ("Train", "Test"), ("training", "dev")])
def test_parts_have_many_names(tmp_path, parts):
    names = [f"{part}/{label}/{i}.wav" for part in parts for label in "ab" for i in range(2)]
    splits = audio.make(path=_folder(tmp_path, names))
    assert splits.train.size == splits.test.size == 4 and splits.train.sizes == {"label": 2}


@pytest.mark.parametrize("parts", [("train", "test", "extra"), ("train", "holdout")])
def test_folders_that_may_be_parts_or_labels(tmp_path, parts):
    names = [f"{part}/{label}/{i}.wav" for part in parts for label in "ab" for i in range(2)]
    with pytest.raises(ValueError, match="which are parts and which are classes"):
        audio.make(path=_folder(tmp_path, names))


@pytest.mark.parametrize("lost", ["c/1.m4a", "test/b/1.WMA"])
def test_a_label_whose_recordings_are_of_an_unread_format_is_refused(tmp_path, lost):
    names = ("a/1.wav", "a/2.wav", "b/1.wav", "b/2.wav")
    if "test" in lost:
        names = ("train/a/1.wav", "train/b/1.wav", "test/a/1.wav")
    path = _folder(tmp_path, names)
    (tmp_path / lost).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / lost).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{lost[:-6]} hold no recording that can be read, but 1"):
        audio.make(path=path)


def test_recordings_of_an_unread_format_are_told(tmp_path, caplog):
    path = _folder(tmp_path)
    for name in ("a/3.m4a", "b/3.m4a", "c/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    splits = audio.make(path=path)
    assert splits.train.size + splits.test.size == 4 and splits.train.sizes["label"] == 2
    assert "skipped files: 2 .m4a." in caplog.text
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "1.m4a").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no recording; .* It has 1 \.m4a"):
        audio.make(path=str(tmp_path / "alone"))
