"""Labels outside their classes are refused before a compiled program clamps them."""

import jax
import jax.numpy as jnp
import pytest

from cl_jax.evals._labels import check_classes


@pytest.mark.parametrize("labels", [[0, 3], [-1, 2]])
def test_labels_outside_are_named(labels):
    with pytest.raises(ValueError, match=f"train_labels go from {labels[0]} to {labels[1]}"):
        check_classes(3, train_labels=jnp.array(labels))


def test_what_is_inside_empty_missing_or_traced_passes():
    check_classes(3, a=jnp.array([0, 2]), b=None, c=jnp.zeros(0, jnp.int32))
    jax.jit(lambda x: (check_classes(3, x=x), x)[1])(jnp.array([7]))
