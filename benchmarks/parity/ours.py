"""Our side of the step-for-step comparison: the method's own `update`, ten times.

python benchmarks/parity/ours.py CASE float32|float64 FOLDER: writes FOLDER/CASE.<type>.inputs.npz
(initial weights and memories, views, labels, ids) and FOLDER/CASE.<type>.ours.npz.
"""

import importlib

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cl_jax.core.method import Run
from cl_jax.core.sharded import is_sharded, settle
from cl_jax.encoders import resnet
from cl_jax.training import optim


class Given:
    """A view that is a field of the batch: both programs see the same pixels."""

    needs: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()

    def __init__(self, number):
        self.number = number

    def draw(self, keys, batch):
        return batch[f"view{self.number}"]

    def clean(self, batch):
        return batch["view0"]


def recorded():
    """Passes gradients on and keeps them in the optimiser's state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, state, params=None: (g, g)
    )


def method_of(name, dtype):
    """The case's method, with SGD and views of the batch."""
    case = cases.CASES[name]
    encoder = resnet.make(
        depth=cases.DEPTH,
        width=cases.WIDTH,
        stem="cifar",
        variant="torchvision",
        dtype=dtype,
        axis_name=None,
    )
    settings = dict(cases.SGD)
    tx = optax.chain(recorded(), optim.sgd(settings.pop("learning_rate"), **settings))
    run = Run(
        None,
        cases.BATCH,
        cases.EXAMPLES,
        cases.EXAMPLES // cases.BATCH,
        cases.STEPS,
        {"label": cases.CLASSES},
    )
    made = importlib.import_module(f"cl_jax.methods.{case['method']}")
    views = [Given(number) for number in range(len(cases.sides(name)))]
    return made.make(encoder=encoder, tx=tx, views=views, run=run, **case["settings"])


def batches(name, dtype):
    """Ten batches: smooth noise as images, so that convolutions see something; ids and labels."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(cases.STEPS):
        ids = rng.permutation(cases.EXAMPLES)[: cases.BATCH].astype(np.int32)
        batch = {"id": ids, "label": (ids % cases.CLASSES).astype(np.int32)}
        for number, side in enumerate(cases.sides(name)):
            coarse = rng.normal(size=(cases.BATCH, side // 4, side // 4, 3))
            fine = rng.normal(size=(cases.BATCH, side, side, 3))
            pixels = coarse.repeat(4, axis=1).repeat(4, axis=2) + 0.3 * fine
            batch[f"view{number}"] = pixels.astype(np.float32).astype(dtype)
        batch["image"] = np.zeros((cases.BATCH, cases.SIDE, cases.SIDE, 3), np.uint8)
        found.append(batch)
    return found


def flat(tree, prefix):
    """{"prefix/a/b": array} of a tree."""
    found = {}
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_sharded)[0]
    for path, leaf in leaves:
        words = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        found["/".join([prefix, *words])] = np.asarray(leaf.rows if is_sharded(leaf) else leaf)
    return found


def started(method, batch, dtype):
    """The State of step 0 in a type; cluster assignments drawn, since k-means is not compared."""
    state = jax.jit(method.init)(jax.random.key(3), batch)
    wide = jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
    )
    if hasattr(wide.memory, "assignments"):
        rng = np.random.default_rng(5)
        drawn = [
            rng.integers(rows.shape[0], size=cases.EXAMPLES) for rows in wide.memory.prototypes
        ]
        memory = wide.memory._replace(assignments=jnp.asarray(np.stack(drawn), jnp.int32))
        wide = wide.replace(memory=memory)
    return wide


def main(name, dtype, folder):
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    stem = f"{folder}/{name}.{dtype}"
    method, given = method_of(name, dtype), batches(name, dtype)
    state = started(method, given[0], dtype)
    inputs = flat(state.params, "params") | flat(state.memory, "memory")
    if state.target is not None:
        inputs |= flat(state.target.params, "target")
    for number, batch in enumerate(given):
        inputs |= {f"batch/{number}/{field}": value for field, value in batch.items()}
    np.savez(f"{stem}.inputs.npz", **inputs)

    def step_of(state, batch, key):
        after, metrics = method.update(state, batch, key)
        return settle(after, None), metrics

    step, found = jax.jit(step_of), {}
    for number, batch in enumerate(given):
        state, metrics = step(state, batch, jax.random.key(number))
        found[f"{number}/loss"] = np.asarray(metrics["loss"])
        found |= flat(state.opt[0], f"{number}/gradient")
        found |= flat(state.params, f"{number}/params")
        if state.target is not None:
            found |= flat(state.target.params, f"{number}/target")
        found |= flat(state.memory, f"{number}/memory")
    np.savez(f"{stem}.ours.npz", **found)


if __name__ == "__main__":
    main(**cases.words(__doc__, **cases.OF_STEPS))
