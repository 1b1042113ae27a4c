"""Names in messages."""

from cl_jax.core.names import nearest, some


def test_a_close_name_is_suggested_and_a_far_one_is_not():
    assert nearest("simclr_v3", ["simclr_v2", "byol"]) == "; did you mean 'simclr_v2'"
    assert nearest("zebra", ["simclr_v2", "byol"]) == ""


def test_known_names_need_not_be_strings():
    assert nearest("105", [100, 7]) == "; did you mean '100'"


def test_the_first_of_many():
    assert some("abcde", 3) == "a, b, c, ..." and some([1, 2], 2) == "1, 2" and some(()) == "none"
