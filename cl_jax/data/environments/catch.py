"""Catch: a ball falls, and a paddle must be below it when it lands (Mnih et al., arXiv 1406.6247;
the form of bsuite, Osband et al., arXiv 1908.03568)."""

import jax
import jax.numpy as jnp

from cl_jax.data.environments import Environment, World


def make(
    *,
    rows: int = 10,
    columns: int = 5,
    covered: int = 0,
    flicker: float = 0.0,
    speckle: float = 0.0,
) -> Environment:
    """A board of `rows` x `columns`; the paddle is in the last row and starts in the middle.

    Each step the paddle moves left (0), stays (1) or moves right (2), and the ball falls one row,
    from a random column of the first. When it reaches the last row the episode ends with 1 if the
    paddle is there, else -1. The observation is the board, 1 where ball and paddle are.

    covered: rows below the first in which the ball cannot be seen. It comes out again before it
      lands, so that what an agent remembers of it can be predicted and seen to be true.
    flicker: the probability with which the whole board is not seen at a time, each time for itself
      (as in the flickering games of Hausknecht and Stone, arXiv 1507.06527).
    speckle: the probability with which a cell is seen flipped, each cell at each time for itself:
      lit where nothing is, or dark where the ball or the paddle is. What is seen at one time does
      not say where the ball is; what is remembered of several times does.

    Raises:
      ValueError: fewer than 2 rows or columns, a cover that is negative or leaves less than one row
        between itself and the last, a flicker outside 0 to 1, a speckle outside 0 to 0.5.
    """
    if rows < 2 or columns < 2:
        raise ValueError(f"a board of {rows} x {columns}; expected at least 2 rows and 2 columns.")
    if not 0 <= covered <= max(rows - 3, 0):
        raise ValueError(
            f"covered={covered} of {rows} rows; expected from 0 to {max(rows - 3, 0)}: the ball is "
            "seen in the first row and again before it lands."
        )
    if not 0 <= flicker < 1:
        raise ValueError(f"flicker={flicker}; expected a probability from 0 to below 1.")
    if not 0 <= speckle < 0.5:
        raise ValueError(
            f"speckle={speckle}; expected a probability from 0 to below 0.5, at which the board "
            "is nothing but noise."
        )

    def noise(key: jax.Array) -> World:
        """Whether the board is seen and which cells are flipped, where the settings ask for it."""
        drawn = {}
        if flicker:
            drawn["lit"] = jax.random.bernoulli(key, 1 - flicker)
        if speckle:
            cells = jax.random.fold_in(key, 1)
            drawn["flipped"] = jax.random.bernoulli(cells, speckle, (rows, columns))
        return drawn

    def reset(key: jax.Array) -> World:
        column = jax.random.randint(key, (), 0, columns)
        start = {"row": jnp.int32(0), "column": column, "paddle": jnp.int32(columns // 2)}
        return start | noise(jax.random.fold_in(key, 1))

    def step(world: World, action: jax.Array, key: jax.Array) -> tuple[World, jax.Array, jax.Array]:
        paddle = jnp.clip(world["paddle"] + action - 1, 0, columns - 1)
        world = world | {"row": world["row"] + 1, "paddle": paddle} | noise(key)
        done = world["row"] == rows - 1
        caught = jnp.where(world["column"] == paddle, 1.0, -1.0)
        return world, jnp.where(done, caught, 0.0), done

    def observe(world: World) -> jax.Array:
        row, column = jnp.arange(rows)[:, None], jnp.arange(columns)[None]
        seen = (world["row"] < 1) | (world["row"] > covered)
        ball = (row == world["row"]) & (column == world["column"]) & seen
        paddle = (row == rows - 1) & (column == world["paddle"])
        board = (ball | paddle) ^ world.get("flipped", False)
        return (board & world.get("lit", True)).astype(jnp.float32)

    return Environment(reset, step, observe, actions=3, limit=rows - 1)
