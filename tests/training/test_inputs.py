"""What a network is asked about, without a network: a record of its data says what it reads."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cl_jax.core.errors import ConfigError
from cl_jax.data.source import from_arrays
from cl_jax.training.inputs import Known, check_fields, source_of


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
