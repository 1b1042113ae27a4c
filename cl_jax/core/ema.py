"""Momentum encoders: the slow copy of a parameter tree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def ema_of_params(momentum: float | Callable[[Any], Any]) -> optax.GradientTransformation:
    """The slow copy of a momentum encoder: target <- m target + (1 - m) params, m constant or a
    schedule of its count.

        tx = ema_of_params(0.996)
        state = tx.init(params)  # EmaState(count=0, ema=a copy of params, float32)
        target, state = tx.update(params, state)  # once per step; target is state.ema

    The copy is float32 whatever the parameters are: in bfloat16 0.9995 is 1 and it would never
    move. Whether `params` are those before or after the step, and which part of them, is the
    caller's (MoCo: before; BYOL, DINO: after)."""

    def wide(params):
        return jax.tree.map(
            lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32), copy=True), params
        )

    def init(params):
        return optax.EmaState(count=jnp.zeros([], jnp.int32), ema=wide(params))

    def update(params, state, unused=None):
        m = momentum(state.count) if callable(momentum) else momentum
        return optax.ema(m, debias=False).update(wide(params), state)

    return optax.GradientTransformation(init, update)
