"""The sheet of pictures: what is on it, and pictures that cannot be read."""

import numpy as np
from PIL import Image

from cl_jax.data import contact_sheet
from cl_jax.data.contact_sheet import GREY, MAX_COLUMNS, SIDE, Row, Tile


def picture(folder, name, colour):
    Image.new("RGB", (40, 40), colour).save(folder / name)
    return Tile(folder / name, f"{name}\n.9")


def test_pictures_lie_in_their_rows_and_a_broken_one_is_grey(tmp_path):
    red, blue = picture(tmp_path, "a.png", (255, 0, 0)), picture(tmp_path, "b.png", (0, 0, 255))
    (tmp_path / "c.png").write_bytes(b"not a picture")
    rows = [Row("near a.png", [red, blue]), Row("none", [Tile(tmp_path / "c.png", "c.png")])]
    shown, missing = contact_sheet.write(tmp_path / "sheet.png", rows)
    assert (shown, missing) == (3, 1)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    counts = [(sheet == np.array(c)).all(-1).sum() for c in [(255, 0, 0), (0, 0, 255), GREY]]
    assert counts[0] == counts[1] == SIDE**2 and 0.8 * SIDE**2 < counts[2] <= 1.1 * SIDE**2


def test_twelve_bits_in_files_of_sixteen_are_not_black(tmp_path):
    Image.fromarray(np.full((40, 40), 4095, np.uint16)).save(tmp_path / "a.png")
    contact_sheet.write(tmp_path / "sheet.png", [Row("", [Tile(tmp_path / "a.png", "")])])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert sheet.min() == 255


def test_letters_of_other_alphabets_are_drawn():
    font = contact_sheet._font(12)
    shapes = {bytes(font.getmask(letter)) for letter in "ÄéЖωş\uffff"}
    assert len(shapes) == 6  # none is the box of a letter that is not there


def test_a_sheet_has_an_end(tmp_path):
    tile = picture(tmp_path, "a.png", (255, 0, 0))
    rows = [Row("many", [tile] * 50)] * 3
    assert contact_sheet.write(tmp_path / "sheet.png", rows) == (3 * MAX_COLUMNS, 0)


def test_a_long_name_keeps_its_end_and_no_control_character(tmp_path):
    tile = picture(tmp_path, "a.png", (255, 0, 0))
    rows = [Row("x" * 500 + "\x1b[31m.png", [tile._replace(caption="y" * 300)])]
    assert contact_sheet.write(tmp_path / "sheet.png", rows) == (1, 0)
    font = contact_sheet._font(10)
    fitted = contact_sheet._fitted("folder/" + "z" * 300 + "end.png", SIDE, font)
    assert fitted.startswith("…") and fitted.endswith("end.png")
    assert font.getlength(fitted) <= SIDE
