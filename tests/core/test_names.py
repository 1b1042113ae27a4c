"""The name that a user may have meant."""

from cl_jax.core.names import nearest


def test_a_close_name_is_suggested_and_a_far_one_is_not():
    assert nearest("simclr_v3", ["simclr_v2", "byol"]) == "; did you mean 'simclr_v2'"
    assert nearest("zebra", ["simclr_v2", "byol"]) == ""


def test_known_names_need_not_be_strings():
    assert nearest("105", [100, 7]) == "; did you mean '100'"
