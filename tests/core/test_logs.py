"""The log of a run: rows, and the numbers of the lines that are none."""

from cl_jax.core import logs


def test_lines_that_are_no_rows_are_counted(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert logs.rows(file) == ([], [])
    lines = [b'{"step": 1, "loss": 2.5}', b"", b'{"step": 2, "lo', b"[1]", b'{"loss": 1}']
    lines += [b'{"step": NaN}', b'{"step": 3, "x": "y"}', b"\xff\xfe", b'{"step": 4}']
    file.write_bytes(b"\n".join(lines))
    assert logs.rows(file) == ([{"step": 1, "loss": 2.5}, {"step": 4}], [3, 4, 5, 6, 7, 8])


def test_names_of_earlier_versions(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "images_per_second": 50.0}')
    assert logs.rows(tmp_path / "metrics.jsonl")[0] == [{"step": 1, "examples_per_second": 50.0}]
