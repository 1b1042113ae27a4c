"""Films of a user's folder: what is read, how it is cut and divided, and bad input."""

import numpy as np
import pytest
from PIL import Image

from cl_jax.data import video

RNG = np.random.default_rng(0)


def array(path, count=8, height=6, width=10, start=0):
    """Frames whose grey value counts them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.full((count, height, width, 3), 0, np.uint8)
    frames += (start + np.arange(count, dtype=np.uint8))[:, None, None, None]
    np.save(path, frames)


def pictures(folder, count=8):
    folder.mkdir(parents=True)
    for i in range(count):  # by name, 10 comes before 9
        Image.new("RGB", (10, 6), (i, i, i)).save(folder / f"{i + 6}.png")


def grey(source):
    return source.arrays["clip"][:, :, 0, 0, 0].tolist()


def test_a_film_is_cut_into_pieces_and_its_rest_is_left_out(tmp_path):
    array(tmp_path / "train" / "a.npy", 8)
    pictures(tmp_path / "test" / "b", 9)
    data = video.make(path=str(tmp_path), frames=4, image_size=4)
    assert grey(data.train) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert grey(data.test) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert data.train.arrays["clip"].shape == (2, 4, 4, 4, 3)
    assert data.train.names == ["train/a.npy#1", "train/a.npy#2"]
    assert data.test.names == ["test/b#1", "test/b#2"]
    assert data.train.arrays["video"].tolist() != data.test.arrays["video"].tolist()
    sparse = video.make(path=str(tmp_path), frames=2, every=3, image_size=4, channels=1)
    assert grey(sparse.train) == [[0, 3]] and grey(sparse.test) == [[0, 3]]
    spread = video.make(path=str(tmp_path), frames=3, sampling="spread", image_size=4)
    assert grey(spread.train) == [[0, 4, 7]] and spread.train.names == ["train/a.npy"]


def test_sub_folders_are_labels_and_a_hash_divides(tmp_path):
    for k, kind in enumerate(("run", "walk")):
        for i in range(6):
            array(tmp_path / kind / f"{i}.npy", 4, start=10 * k)
    data = video.make(path=str(tmp_path), frames=4, image_size=4, test_share=0.3)
    assert data.train.size + data.test.size == 12 and data.test.size >= 1
    for source in data[:2]:
        values = np.array(grey(source))[:, 0] // 10
        np.testing.assert_array_equal(source.arrays["label"], values)
        assert source.classes == {"label": ("run", "walk")}
    array(tmp_path / "run" / "new.npy", 4)
    more = video.make(path=str(tmp_path), frames=4, image_size=4, test_share=0.3)
    assert more.train.size + more.test.size == 13


def test_a_label_that_the_test_part_writes_in_another_way_is_refused(tmp_path, caplog):
    for name in ("train/run", "train/walk", "test/Run", "test/walk"):
        array(tmp_path / name / "a.npy", 2)
    given = dict(path=str(tmp_path), frames=2, image_size=4)
    with pytest.raises(ValueError, match=r"train has run, walk, test has Run besides. .*labels=F"):
        video.make(**given)
    assert video.make(**given, labels=False).train.sizes == {"video": 4}
    (tmp_path / "test" / "Run").rename(tmp_path / "test" / "jump")
    for limit in (0, 2):
        assert video.make(**given, limit=limit).test.arrays["label"].tolist() == [0, 2]
        assert caplog.text.count("test has jump besides") == 1
        caplog.clear()


@pytest.mark.parametrize("parts", [("",), ("train/", "test/")])
def test_few_films_of_each_part_are_opened_for_a_trial(tmp_path, parts, monkeypatch):
    names = [f"{part}{kind}/{i}.npy" for part in parts for kind in "abc" for i in range(5)]
    for number, name in enumerate(names):
        array(tmp_path / name, 2, start=2 * number)
    whole = video.make(path=str(tmp_path), frames=2, image_size=4, test_share=0.5)
    opened, read = [], video.read
    monkeypatch.setattr(video, "read", lambda f, **of: opened.append(f) or read(f, **of))
    found = video.make(path=str(tmp_path), frames=2, image_size=4, test_share=0.5, limit=4)
    assert [part.size for part in found[:2]] == [4, 4] and len(opened) == 8
    for few, all_of in zip(found[:2], whole[:2]):
        labels = dict(zip(np.array(grey(all_of))[:, 0], all_of.arrays["label"]))
        starts = np.array(grey(few))[:, 0]
        assert few.arrays["label"].tolist() == [labels[start] for start in starts]
        assert set(few.arrays["label"].tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="limit=-1"):
        video.make(path=str(tmp_path), limit=-1)


def test_the_beginning_of_one_film_is_read_for_a_trial(tmp_path):
    array(tmp_path / "a.npy", 40)
    data = video.make(path=str(tmp_path), frames=2, every=2, image_size=4, test_share=0.4, limit=3)
    assert grey(data.train) == [[0, 2], [4, 6], [8, 10], [12, 14]]
    assert grey(data.test) == [[16, 18], [20, 22]]


def test_the_last_clips_of_one_film_are_the_test_part(tmp_path):
    array(tmp_path / "film.npy", 20)
    data = video.make(path=str(tmp_path), frames=2, image_size=4, test_share=0.2)
    assert grey(data.test) == [[16, 17], [18, 19]] and data.train.size == 8
    names = [*data.train.names, *data.test.names]
    assert names == [f"film.npy#{i}" for i in range(1, 11)]


def test_captions_of_films(tmp_path):
    for i in range(4):
        array(tmp_path / f"{i}.npy", 4, start=i)
    table = tmp_path / "captions.csv"
    table.write_text(
        "file,caption\n" + "".join(f"{i}.npy,a clip of {i}\n" for i in range(4)) + "0.npy,another\n"
    )
    data = video.make(path=str(tmp_path), frames=4, image_size=4, length=12, vocab_size=40)
    tokens = data.train.arrays["tokens"]
    assert tokens.shape[1:] == (2, 12) and data.train.sizes["tokens"] <= 40
    table.write_text("file,caption\n0.npy,a\n1.npy,b\n2.npy,c\n")
    with pytest.raises(ValueError, match=r"1 films have no caption.*3\.npy"):
        video.make(path=str(tmp_path), frames=4, image_size=4)
    table.write_text("file,caption\nlost.npy,a\n")
    with pytest.raises(ValueError, match=r"1 films that are not there, such as lost\.npy"):
        video.make(path=str(tmp_path), frames=4, image_size=4)


def test_a_table_of_captions_divides_the_films(tmp_path):
    for i in range(4):
        array(tmp_path / f"{i}.npy", 4, start=i)

    def write(*splits):
        rows = "".join(f"{i}.npy,a clip of {i},{split}\n" for i, split in enumerate(splits))
        (tmp_path / "captions.csv").write_text("file,caption,Split\n" + rows)
        given = dict(path=str(tmp_path), frames=4, image_size=4, length=12, vocab_size=40)
        return [part.arrays["video"].tolist() for part in video.make(**given)[:2]]

    assert write("test", "train", "val", "train") == [[1, 3], [0, 2]]
    for wrong, words in (
        (("test", "train", "tost", "train"), "line 4: split is 'tost'; expected train or test"),
        (("test", "train", "", "train"), r"of 1 nothing, such as 2\.npy"),
    ):
        with pytest.raises(ValueError, match=words):
            write(*wrong)


def test_a_container_is_read_through_pyav(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "film.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 20 * i, np.uint8), "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    data = video.make(path=str(tmp_path), frames=3, image_size=8)
    found = np.concatenate([np.array(grey(source)).reshape(-1) for source in data[:2]])
    np.testing.assert_allclose(found, 20 * np.arange(12), atol=6)
    (tmp_path / "bad.mp4").write_bytes(b"no film at all" * 50)
    with pytest.raises(ValueError, match=r"bad\.mp4: cannot be read"):
        video.make(path=str(tmp_path), frames=3, image_size=8)


@pytest.mark.parametrize(
    "values, text",
    [
        (np.zeros((5, 4, 4), np.float32), r"is float32\[5, 4, 4\]; expected uint8"),
        (np.zeros((5, 4, 4, 2), np.uint8), "has 2 channels"),
        (np.zeros((2, 4, 4, 3), np.uint8), "has 2 frames, fewer than frames=4"),
        (np.array([{}]), "is not an array that can be read"),
    ],
)
def test_films_that_cannot_be_used_are_named_or_skipped(tmp_path, values, text):
    for i in range(3):
        array(tmp_path / f"{i}.npy", 4)
    np.save(tmp_path / "bad.npy", values, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"1 of the films.*\n  bad\.npy: {text}"):
        video.make(path=str(tmp_path), frames=4, image_size=4)
    data = video.make(path=str(tmp_path), frames=4, image_size=4, on_error="skip")
    assert data.train.skipped == 1 and data.train.size + data.test.size == 3


def test_errors_say_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        video.make(path=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="holds no film"):
        video.make(path=str(tmp_path))
    array(tmp_path / "a.npy", 4)
    for settings, text in (
        (dict(frames=0), "frames=0"),
        (dict(sampling="some"), "sampling='some'"),
        (dict(channels=2), "channels=2"),
        (dict(test_share=1.0), r"test_share=1\.0"),
        (dict(frames=4), "makes one clip"),
        (dict(frames=2, max_bytes=100), "more than max_bytes"),
    ):
        with pytest.raises(ValueError, match=text):
            video.make(path=str(tmp_path), **settings)
    array(tmp_path / "run" / "b.npy", 16)
    array(tmp_path / "walk" / "c.npy", 16)
    with pytest.raises(ValueError, match=r"beside its label folders, such as a\.npy"):
        video.make(path=str(tmp_path), frames=4)
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"pictures beside its clips, such as loose\.png"):
        video.make(path=str(tmp_path), frames=4)


def test_a_label_whose_films_are_of_an_unread_format_is_refused(tmp_path, caplog):
    for name in ("a/1", "a/2", "b/1", "b/2"):
        array(tmp_path / f"{name}.npy")
    (tmp_path / "a" / "3.flv").write_bytes(b"x")
    video.make(path=str(tmp_path), frames=4, image_size=4)
    assert "skipped files: 1 .flv." in caplog.text
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.gif").write_bytes(b"x")
    with pytest.raises(ValueError, match="its folders c hold no film that can be read, but"):
        video.make(path=str(tmp_path), frames=4, image_size=4)


def test_a_digit_that_is_no_decimal_is_a_letter_of_a_name(tmp_path):
    for name in ("take\u00b2", "\u00b2", "2"):
        array(tmp_path / f"{name}.npy")
    data = video.make(path=str(tmp_path / "."), frames=4, image_size=4)
    assert data.train.size + data.test.size == 6
    pictures(tmp_path / "\u00b2")
    data = video.make(path=str(tmp_path), frames=4, image_size=4)
    assert data.train.size + data.test.size == 8
