"""The product of dense layers, with the gradient of its kernel in the order that a CPU multiplies
fastest."""

from typing import Any

import jax
from jax import lax

from cl_jax.core.axis import varying


def dot_general(
    x: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """x [..., D] times kernel [D, F], for flax's `nn.Dense(dot_general=...)`; differentiated in
    reverse.

    The kernel's gradient is one product of rows, x' dy. JAX's own rule takes dy' x and transposes
    it, for which XLA's CPU compiler writes dy a second time, transposed.

    Raises:
      ValueError: another contraction, precision or type than the default.
    """
    expected = (((x.ndim - 1,), (0,)), ((), ()))
    if dimension_numbers != expected or precision is not None or preferred_element_type is not None:
        raise ValueError(
            f"dimension_numbers={dimension_numbers}, precision={precision} and "
            f"preferred_element_type={preferred_element_type}; expected {expected}, as of a dense "
            "layer, and None for both. Use lax.dot_general."
        )
    return _product(*varying((x, kernel)))


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    dx = lax.dot_general(dy, kernel, (((dy.ndim - 1,), (1,)), ((), ())))
    rows = tuple(range(x.ndim - 1))
    return dx, lax.dot_general(x, dy, ((rows, rows), ((), ())))


_product.defvjp(_forward, _backward)
