"""What a method remembers between steps, as NamedTuples of arrays moved by pure functions. Imports jax only."""

from cl_jax.memory import queue
from cl_jax.memory.queue import Queue

__all__ = ["Queue", "queue"]
