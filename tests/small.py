"""A contrastive method of one small layer on random images, compiled in a second. It can be given a
fault on purpose."""

import dataclasses
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import DictKey, GetAttrKey, keystr
from ml_collections import ConfigDict

from cl_jax.core import parallel, sharded
from cl_jax.core.method import Aux, Run, Variables, from_loss
from cl_jax.data import batches
from cl_jax.data.source import Source, Splits
from cl_jax.encoders.norm import BatchNorm
from cl_jax.evals import evaluation
from cl_jax.losses import unit
from cl_jax.training import loop, optim, programs
from cl_jax.training.experiment import Built

SIZE, BATCH, STEPS, TEMPERATURE = 48, 16, 10, 0.5
FAULTS = (
    "keys of other devices without gradient",
    "gradient of the mean over devices divided once more",
    "labels without the rank's offset",
)


def config(devices):
    return ConfigDict(
        dict(
            seed=3,
            devices=devices,
            nonfinite="stop",
            dispatch_steps=0,
            log_steps=5,
            views=dict(one=dict(name="simclr_cifar", size=4)),
            evals=dict(batch_size=16),
            keep_checkpoints=2,
        )
    )


def method(fault=None, micro_batches=1):
    """Two noisy views, one layer, InfoNCE over the global batch; `memory` counts how often each
    example was seen, and holds the keys of the last batch."""
    axis = parallel.AXIS

    def variables(key, batch):
        weights = 0.1 * jax.random.normal(key, (48, 8))
        memory = {"seen": jnp.zeros(SIZE, jnp.int32), "keys": jnp.zeros((BATCH, 8))}
        return Variables({"w": weights}, {"mean": jnp.zeros(8)}, memory=memory)

    def views(batch, key):
        def view(number):
            def one(image, i):
                noise = jax.random.normal(
                    jax.random.fold_in(jax.random.fold_in(key, i), number), (48,)
                )
                return image.reshape(-1) / 255.0 + 0.1 * noise

            return jax.vmap(one)(batch["image"], batch["id"])

        return [view(1), view(2)]

    def forward(params, stats, target, inputs, batch, key):
        a, b = (x @ params["w"] for x in inputs)
        centre = parallel.mean(jnp.mean(a, 0), axis)
        return (
            (unit(a - centre[None]), unit(b - centre[None])),
            {"mean": 0.9 * stats["mean"] + 0.1 * centre},
            None,
        )

    def loss(outputs, params, memory, batch, key):
        q, k = outputs
        first = parallel.first_row(len(q), axis)
        keys = parallel.gather(k, axis)
        if fault == FAULTS[0]:  # gathered without gradient, the device's own rows put back
            keys = lax.dynamic_update_slice(lax.stop_gradient(keys), k, (first, 0))
        labels = jnp.arange(len(q)) + (0 if fault == FAULTS[2] else first)
        logits = q @ keys.T / TEMPERATURE
        value = jnp.mean(
            jax.nn.logsumexp(logits, 1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
        )
        if fault == FAULTS[1]:  # the value is right, its gradient is not
            value = lax.stop_gradient(value) + (value - lax.stop_gradient(value)) / lax.axis_size(
                axis
            )
        value = parallel.mean(value, axis)
        everyone = parallel.gather(batch["id"], axis)
        return value, Aux(
            {}, {"seen": memory["seen"].at[everyone].add(1), "keys": parallel.gather(k, axis)}
        )

    tx, _ = optim.build(
        name="sgd",
        learning_rate=1e-2,
        learning_rate_scaling="none",
        schedule="constant",
        batch_size=BATCH,
        steps_per_epoch=SIZE // BATCH,
        total_steps=STEPS,
    )
    return from_loss(
        variables=variables,
        views=views,
        needs=("image",),
        forward=forward,
        loss=loss,
        tx=tx,
        axis_name=axis,
        micro_batches=micro_batches,
        features=lambda params, stats, images, train: (
            {"h": images.reshape(-1, 48) @ params["w"]},
            stats,
        ),
        clean=lambda batch: batch["image"] / 255.0,
    )


def built(devices, fault=None, resident=True, micro_batches=1):
    """The method on so many devices; `resident=False`: images are read from the host, batch by
    batch."""
    images = np.random.default_rng(0).integers(0, 256, (SIZE, 4, 4, 3), np.uint8)
    source = Source(
        "random", SIZE, lambda i: {"image": images[i]}, {}, {"image": images} if resident else None
    )
    run = Run(parallel.AXIS, BATCH, SIZE, SIZE // BATCH, STEPS, {})
    return Built(
        method(fault, micro_batches),
        Splits(source, source),
        run,
        parallel.make_mesh(devices),
        lambda step: 1e-2,
    )


def epochal(config):
    """The method on the config's devices, for its epochs, with work before each: a centre of all
    features is remembered, and an order of examples is made of it."""
    start = built(config.devices)
    inner, run = (
        start.method,
        start.run._replace(total_steps=round(config.total_epochs * start.run.steps_per_epoch)),
    )

    def init(key, batch):
        state = inner.init(key, batch)
        more = {"offset": jnp.zeros(8), "groups": jnp.zeros(SIZE, jnp.int32)}
        return dataclasses.replace(state, memory=state.memory | more)

    def refresh(state, encode_all, epoch):
        rows = encode_all(_rows)
        changed = {
            "offset": np.mean(rows, 0),
            "groups": (rows[:, 0] > np.median(rows[:, 0])) + np.int32(epoch % 2),
        }
        return dataclasses.replace(state, memory=state.memory | changed)

    def update(state, batch, key):
        after, values = inner.update(state, batch, key)
        params = {"w": after.params["w"] + 1e-3 * state.memory["offset"][None]}
        memory = after.memory | {name: state.memory[name] for name in ("offset", "groups")}
        return dataclasses.replace(after, params=params, memory=memory), values

    def order(state, epoch, seed):
        balanced = batches.balanced_order(seed, epoch, np.asarray(state.memory["groups"]))
        return balanced[: run.steps_per_epoch * run.batch_size]

    method = dataclasses.replace(inner, init=init, update=update, refresh=refresh, order=order)
    return start._replace(method=method, run=run)


def _rows(state, batch):
    return batch["image"].reshape(-1, 48) / 255.0 @ state.params["w"]


def share_programs(monkeypatch, found):
    """Lets the runs of a module share their compiled programs, most of what a run of this method
    costs: a program of the same `loop.build`, config and arguments is taken from `found`. What a
    `functools.partial` in the place of `loop.build` is given changes no program."""
    compiled, over_blocks = programs.compiled, evaluation.over_blocks

    def once(name, lifted, arguments, config, run, *options):
        facts = programs._signature(arguments), *programs._facts(config, run)
        key = getattr(loop.build, "func", loop.build), name, *facts
        if key not in found:
            found[key] = compiled(name, lifted, arguments, config, run, *options)
        return found[key]

    def over_blocks_once(f, mesh, quick=False):
        if (f, mesh) not in found:
            found[f, mesh] = over_blocks(f, mesh, quick)
        return found[f, mesh]

    monkeypatch.setattr(programs, "compiled", once)
    monkeypatch.setattr(evaluation, "over_blocks", over_blocks_once)


def updates(method):
    """A compiled step of a method on one device, its writes done."""

    def update(state, batch, key):
        after, metrics = method.update(state, batch, key)
        return sharded.settle(after, None), metrics

    return jax.jit(update)


def light(config, stages=1):
    """Leaves a debug config of images one stage of its ResNet, or with `stages=0` the encoder of
    this module, and flips alone of its views: most of what such a step takes to compile."""
    with config.unlocked():
        if stages:
            config.encoder.blocks = (1,) * stages
        else:
            config.encoder = ConfigDict({"name": __name__})
        config.views = ConfigDict(
            {"both": {"name": "crop_flip", "crop": "none", "copies": 2, "size": 16}}
        )


def started(method, batch):
    """A State like that of `method.init`, drawn by NumPy, so that nothing is compiled: for tests
    that hold for any values. Kernels, and unit rows of memories, are random; a target's equal those
    of the same name; scales and variances are 1, all else 0."""

    def draw(path, x):
        if not jnp.issubdtype(x.dtype, jnp.floating) or path[0] == GetAttrKey("opt"):
            return jnp.zeros(x.shape, x.dtype)
        keys = [entry.key for entry in path if isinstance(entry, DictKey)]
        if keys and keys[-1] in ("scale", "var"):
            return jnp.ones(x.shape, x.dtype)
        if x.ndim < 2:
            return jnp.zeros(x.shape, x.dtype)
        name = "/".join(x for x in keys if x != "network") or keystr(path)
        rows = np.random.default_rng(zlib.crc32(name.encode())).normal(size=x.shape)
        if keys:
            return jnp.asarray(rows / np.sqrt(np.prod(x.shape[:-1])), x.dtype)
        return jnp.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), x.dtype)

    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    return jax.tree_util.tree_map_with_path(draw, shapes)


class Pixels(nn.Module):
    """An encoder of the upper left 4x4 pixels, one layer and perhaps batch norm: for tests of
    methods, to most of which the network says nothing, and whose time is the compiler's."""

    norm: bool = False
    splits: int = 1
    width: int = 6
    dtype: None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        h = nn.Dense(self.width)(images[:, :4, :4].reshape(len(images), -1))
        if self.norm:
            norm = BatchNorm(axis_name=self.axis_name, splits=self.splits, name="norm")
            h = norm(h, train=train)
        return {"h": h}


def make(*, norm: bool = True, width: int = 6, axis_name: str | None = None) -> Pixels:
    """`Pixels` for a config, whose encoder is of the name "tests.small"."""
    return Pixels(norm=norm, width=width, axis_name=axis_name)
