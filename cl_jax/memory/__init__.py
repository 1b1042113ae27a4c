"""What a method remembers between steps: arrays and NamedTuples of arrays, moved by pure functions.
Imports jax only.

Updates take the rows of the global batch, gathered over devices in rank order, so that all devices
hold the same bits.

>>> from cl_jax.memory import bank, queue
>>> negatives = queue.init(key, 65536, 128)
>>> negatives = queue.enqueue(negatives, k)
"""

from cl_jax.memory import bank, centre, crop_queue, hybrid, prototypes, queue
from cl_jax.memory.hybrid import HybridMemory
from cl_jax.memory.queue import Queue

__all__ = [
    "HybridMemory",
    "Queue",
    "bank",
    "centre",
    "crop_queue",
    "hybrid",
    "prototypes",
    "queue",
]
