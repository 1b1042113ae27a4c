"""SimCLR's NT-Xent, MoCo, MoCo v3, CLIP and SigLIP, on one device and on several."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.numerics import unit
from cl_jax.losses import image_text, infonce
from cl_jax.losses.nce import queue_logits
from cl_jax.memory import queue as queues
from tests.goldens import Case, Golden
from tests.losses.compiled import as_given

queue_logits = as_given(queue_logits)

RANK = "rank"


def released_unit(x: jax.Array, eps: float) -> jax.Array:
    """Unit rows with the authors' gradient of a row shorter than eps, that of x / eps; our losses
    give such a row none."""
    return unit(x, eps, short_gradient=True)


def _hidden_rows(case: Case, hidden: jax.Array) -> jax.Array:
    return released_unit(hidden, 1e-6) if case["hidden_norm"] else hidden


def nt_xent(case: Case) -> dict:
    shared = {"temperature": case["temperature"]}

    def loss(hidden):
        rows = _hidden_rows(case, hidden)
        return infonce.nt_xent(*jnp.split(rows, 2), sum_directions=True, normalise=False, **shared)

    value, grads = case.grad(loss, "hidden")
    ab = infonce.nt_xent_logits(
        *jnp.split(case["hidden"], 2), normalise=bool(case["hidden_norm"]), **shared
    )
    return {"loss": value, **grads, "logits_ab": ab.logits, "labels": _one_hot(ab)}


def nt_xent_on_replicas(case: Case) -> dict:
    shared = {
        "temperature": case["temperature"],
        "normalise": bool(case["hidden_norm"]),
        "axis_name": RANK,
    }

    def losses(hidden):
        def replica(hidden):
            return infonce.nt_xent_rows(*jnp.split(hidden, 2), **shared).mean(axis=1).sum()

        return jax.vmap(replica, axis_name=RANK)(hidden)

    def loss(hidden):
        def replica(hidden):
            rows = _hidden_rows(case, hidden)
            return infonce.nt_xent(
                *jnp.split(rows, 2), sum_directions=True, **shared | {"normalise": False}
            )

        return jax.vmap(replica, axis_name=RANK, out_axes=None)(hidden)

    value, grads = case.grad(loss, "hidden")
    ab = jax.vmap(
        lambda hidden: infonce.nt_xent_logits(*jnp.split(hidden, 2), **shared), axis_name=RANK
    )(case["hidden"])
    return {
        "loss": value,
        **grads,
        "loss_per_replica": losses(case["hidden"]),
        "logits_ab": ab.logits,
        "labels": jax.vmap(_one_hot)(ab),
    }


def _one_hot(ab: infonce.Logits) -> jax.Array:
    """The authors' targets, over z_b and then z_a."""
    return jax.nn.one_hot(ab.labels, 2 * ab.logits.shape[1])


def moco(case: Case) -> dict:
    memory = queues.Queue(case["queue"].T, jnp.asarray(case["queue_ptr"]), jnp.asarray(0))

    def step(memory, batch):
        q, k = batch
        unit_q, unit_k = unit(q), unit(k)

        def loss(q):
            q = released_unit(q, 1e-12)
            return infonce.info_nce(
                q, unit_k, memory.rows, temperature=case["temperature"], normalise=False
            )

        value, grad = jax.value_and_grad(loss)(q)
        logits = queue_logits(unit_q, unit_k, memory.rows, temperature=case["temperature"])
        memory = queues.enqueue(memory, unit_k)
        return memory, (value, grad, logits, memory.rows.T, memory.pointer)

    _, (values, grads, logits, rows, pointers) = lax.scan(step, memory, (case["q"], case["k"]))
    return {
        "loss": values[0],
        "loss_steps": values,
        "grad_q": grads,
        "logits": logits,
        "queue_after": rows,
        "queue_ptr_after": pointers,
    }


def moco_v3(case: Case) -> dict:
    """One direction: both, of the same arrays, are twice it."""
    k = unit(case["k"])

    def loss(q):
        q = released_unit(q, 1e-12)
        return infonce.moco_v3(q, q, k, k, temperature=case["temperature"], normalise=False) / 2

    value, grads = case.grad(loss, "q")
    return {"loss": value, **grads}


def moco_v3_on_ranks(case: Case) -> dict:
    shared = {"temperature": case["temperature"], "axis_name": RANK}
    k = case["k1"], case["k2"]
    loss, grads = case.grad(
        lambda *q: jax.vmap(partial(infonce.moco_v3, **shared), axis_name=RANK, out_axes=None)(
            *q, *k
        ),
        "q1",
        "q2",
    )
    rows = jax.vmap(partial(infonce.moco_v3_rows, **shared), axis_name=RANK)(
        case["q1"], case["q2"], *k
    )
    return {"loss": loss, **grads, "loss_per_rank": rows.sum(axis=1).mean(axis=1)}


def clip(case: Case) -> dict:
    scale = jnp.asarray(case["logit_scale"], case.dtype)
    image, text = case["image_features"], case["text_features"]
    loss, grads = jax.value_and_grad(
        lambda u, v, s: image_text.clip(u, v, logit_scale=s, normalise=False), argnums=(0, 1, 2)
    )(image, text, scale)
    bias = case["logit_bias"] if "logit_bias" in case else 0.0
    logits = image_text.clip_logits(
        image, text, logit_scale=scale, logit_bias=bias, normalise=False
    )
    return {
        "loss": loss,
        "logits_per_image": logits,
        "logits_per_text": logits.T,
        "grad_logit_bias": jnp.zeros(()),  # a bias cancels, and our loss has none
        **_named(grads, "grad_", ("image_features", "text_features", "logit_scale")),
    }


def clip_on_ranks(case: Case) -> dict:
    names = ("image_features", "text_features", "logit_scale")
    scale = jnp.asarray(case["logit_scale"], case.dtype)
    image, text = case["image_features"], case["text_features"]
    local = bool(case["local_loss"])

    def rank(image, text, scale):
        return image_text.clip_rows(
            image,
            text,
            logit_scale=scale,
            normalise=False,
            axis_name=RANK,
            local_loss=local,
            gather_with_grad=bool(case["gather_with_grad"]),
        ).mean()

    def whole(image, text, scale):
        return image_text.clip(image, text, logit_scale=scale, normalise=False)

    return _on_ranks(rank, whole, names, image, text, scale)


def siglip(case: Case) -> dict:
    scale, bias = (jnp.asarray(case[name], case.dtype) for name in ("logit_scale", "logit_bias"))
    image, text = case["image_features"], case["text_features"]

    def loss(u, v, s, b, negative_only=False):
        return image_text.siglip(
            u,
            v,
            logit_scale=s,
            logit_bias=b,
            normalise=False,
            negative_only=negative_only,
            block_size=case["chunk_size"],
        )

    value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(image, text, scale, bias)
    return {
        "loss": value,
        "loss_negative_only": loss(image, text, scale, bias, negative_only=True),
        "logits": image_text.clip_logits(
            image, text, logit_scale=scale, logit_bias=bias, normalise=False
        ),
        **_named(grads, "grad_", ("image_features", "text_features", "logit_scale", "logit_bias")),
    }


def siglip_on_ranks(case: Case) -> dict:
    names = ("image_features", "text_features", "logit_scale", "logit_bias")
    scale, bias = (jnp.asarray(case[name], case.dtype) for name in names[2:])

    def rank(image, text, scale, bias):
        return image_text.siglip_rows(
            image, text, logit_scale=scale, logit_bias=bias, normalise=False, axis_name=RANK
        ).mean()

    def whole(image, text, scale, bias):
        return image_text.siglip(image, text, logit_scale=scale, logit_bias=bias, normalise=False)

    return _on_ranks(rank, whole, names, case["image_features"], case["text_features"], scale, bias)


def _on_ranks(rank, whole, names, image, text, *scalars) -> dict:
    """Each rank's loss and the gradient it holds after all have gone backward; then one process on
    all rows."""
    every = tuple(range(len(names)))
    losses, held = jax.vmap(
        jax.value_and_grad(rank, argnums=every),
        axis_name=RANK,
        in_axes=(0, 0, *(None for _ in scalars)),
    )(image, text, *scalars)

    def one_process(image, text, *scalars):
        return whole(*(x.reshape(-1, x.shape[-1]) for x in (image, text)), *scalars)

    loss, grads = jax.value_and_grad(one_process, argnums=every)(image, text, *scalars)
    return {
        "loss": loss,
        "loss_ranks": losses,
        **_named(grads, "grad_", names),
        **_named(held, "gradrank_", names),
    }


def _named(grads, prefix, names) -> dict:
    return {prefix + name: grad for name, grad in zip(names, grads)}


TABLE = {
    "simclr-ntxent": Golden(nt_xent, f32=5e-6),
    "simclr-ntxentmulti": Golden(nt_xent_on_replicas, f32=5e-6),
    "moco-loss": Golden(moco, f32=5e-5),
    "mocov3-loss": Golden(moco_v3, f32=5e-6),
    "mocov3-lossmulti": Golden(moco_v3_on_ranks, f32=5e-6),
    "clip-loss": Golden(clip, f32=2e-6, grad=5e-6),
    "clip-dist": Golden(clip_on_ranks),
    "clip-siglip": Golden(siglip, f32=2e-6),
    "clip-siglipdist": Golden(siglip_on_ranks),
}
