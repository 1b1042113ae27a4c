"""Deep InfoMax's critic: its start, its scale, its shapes."""

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.heads.infomax import DotCritic, noisy_identity


def test_the_shortcut_starts_as_a_noisy_identity():
    kernel = noisy_identity(jax.random.key(0), (4, 6))
    np.testing.assert_array_equal(jnp.diagonal(kernel), 1)
    off = kernel[~np.eye(4, 6, dtype=bool)]
    assert 0 < abs(off).max() <= 0.01


def test_rows_have_unit_moments_over_any_leading_axes():
    critic = DotCritic(units=6)
    x = 50 * jax.random.normal(jax.random.key(1), (5, 2, 4))
    variables = jax.jit(lambda: critic.init(jax.random.key(0), x, train=True))()
    y, changed = critic.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.shape == (5, 2, 6) and y.dtype == jnp.float32
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, rtol=1e-3)
    assert abs(changed["batch_stats"]["norm"]["mean"]).max() > 0


def test_narrow_critics_start_without_an_identity():
    critic = DotCritic(units=2)
    variables = critic.init(jax.random.key(0), jnp.ones((3, 4)), train=True)
    kernel = variables["params"]["shortcut"]["kernel"]
    assert abs(jnp.diagonal(kernel) - 1).min() > 0.1
