"""Mixing, adversarial examples, generation, video and text, planning, leave-one-out and local
losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cl_jax.core.ema import ema_of_params
from cl_jax.core.numerics import dots, unit
from cl_jax.losses import adversarial, calm, generation, mixing, spaces, video_text
from cl_jax.losses.infonce import info_nce, nt_xent
from cl_jax.losses.inva_spread import inva_spread
from cl_jax.losses.nce import queue_logits
from cl_jax.memory import queue as queues
from tests.goldens import Case, Golden
from tests.losses.compiled import as_given

# The authors' programs leave the normalising of these losses to their callers.
spaces, video_text = as_given(spaces), as_given(video_text)
inva_spread, queue_logits = as_given(inva_spread), as_given(queue_logits)


def _mixes(case: Case):
    """What the inputs of each pass were mixed with: none, MixUp or CutMix."""
    if "randind" not in case:
        return [None]
    mixes = []
    for step, (raw, partner) in enumerate(zip(case["lam_raw"], case["randind"])):
        weight = mixing.own_share(raw)
        if "box_center" in case:
            box, weight = mixing.cutmix_box(
                weight, case["box_center"][step], *case["im_1"].shape[2:]
            )
            mixes.append(mixing.Mix(jnp.broadcast_to(weight, partner.shape), partner, box))
        else:
            mixes.append(mixing.Mix(weight, partner))
    return mixes


def _last(x):
    """[B, C, H, W] -> [B, H, W, C]; rows of features stay."""
    return jnp.moveaxis(x, 1, -1) if x.ndim == 4 else x


def _first(x):
    return jnp.moveaxis(x, -1, 1) if x.ndim == 4 else x


def _mixed(x, mix):
    return x if mix is None else _first(mixing.mix_inputs(_last(x), mix))


def _encode(weights, x):
    return x.reshape(x.shape[0], -1) @ weights.T


def _imix(case: Case, trained, pass_loss, pass_logits):
    """pass_loss(params, step, mixed, other, mix): one pass; a second has the views swapped and is
    added."""
    mixes = _mixes(case)

    def views(params, step):
        pair = params["im_1"], params.get("im_2", case["im_2"])
        return pair if step == 0 else pair[::-1]

    def loss(*params):
        params = dict(zip(trained, params))
        total = 0
        for step, mix in enumerate(mixes):
            x, other = views(params, step)
            total = total + pass_loss(params, step, _mixed(x, mix), other, mix)
        return total

    value, grads = case.grad(loss, *trained)
    params = {name: case[name] for name in trained}
    mixed = [_mixed(views(params, step)[0], mix) for step, mix in enumerate(mixes)]
    logits = [
        pass_logits(params, step, mixed[step], views(params, step)[1]) for step in range(len(mixes))
    ]
    rows = case["im_1"].shape[0]
    out = {
        "loss": value,
        **grads,
        "logits": jnp.concatenate(logits),
        "labels": jnp.tile(jnp.arange(rows), len(mixes)),
    }
    if mixes[0] is not None:
        out |= {"mixed": jnp.stack(mixed), "lam": jnp.stack([mix.weight for mix in mixes])}
    if mixes[0] is not None and mixes[0].box is not None:
        out |= {
            "box": jnp.stack([mix.box for mix in mixes]),
            "lam": jnp.stack([mix.weight[0] for mix in mixes]),
        }
    return out


def _npair(case: Case):
    temperature = case["temperature"]

    def loss(params, step, x, other, mix):
        return mixing.imix_n_pair(
            _encode(params["W"], x), _encode(params["W"], other), mix, temperature=temperature
        )

    def logits(params, step, x, other):
        return mixing.imix_logits(
            _encode(params["W"], x), _encode(params["W"], other), temperature=temperature
        )

    return _imix(case, ("im_1", "im_2", "W"), loss, logits)


def _slow(case: Case, passes: int):
    """The key encoder after each pass's momentum update, which precedes the keys."""
    tx = ema_of_params(case["ema_momentum"])
    state, slow = tx.init(case["W_k"]), []
    for _ in range(passes):
        target, state = tx.update(case["W"], state)
        slow.append(target)
    return slow


def _enqueued(case: Case, keys):
    after = queues.enqueue(
        queues.Queue(case["queue"].T, jnp.asarray(case["queue_ptr"]), jnp.asarray(0)), keys
    )
    return {"queue_after": after.rows.T, "queue_ptr_after": after.pointer}


def _mocon(case: Case):
    slow, temperature = _slow(case, 1)[0], case["temperature"]

    def loss(params, step, x, other, mix):
        return mixing.imix_moco(
            _encode(params["W"], x),
            _encode(slow, other),
            case["queue"].T,
            mix,
            temperature=temperature,
        )

    def logits(params, step, x, other):
        return mixing.imix_logits(
            _encode(params["W"], x), _encode(slow, other), case["queue"].T, temperature=temperature
        )

    return (
        _imix(case, ("im_1", "W"), loss, logits)
        | _enqueued(case, unit(_encode(slow, case["im_2"])))
        | {"W_k_after": slow}
    )


def _moco(case: Case):
    slow, temperature, memory = _slow(case, 1)[0], case["temperature"], case["queue"].T
    k = _encode(slow, case["im_2"])

    def loss(x, weights):
        return info_nce(_encode(weights, x), k, memory, temperature=temperature)

    value, grads = case.grad(loss, "im_1", "W")
    logits = queue_logits(
        unit(_encode(case["W"], case["im_1"])), unit(k), memory, temperature=temperature
    )
    return {
        "loss": value,
        **grads,
        "logits": logits,
        "labels": jnp.zeros(len(k), int),
        "W_k_after": slow,
        **_enqueued(case, unit(k)),
    }


def _byol(case: Case):
    names = ("im_1", "W", "pred_W", "pred_b") + (
        ("im_2",) if "grad_im_2" in case.meta["outputs"] else ()
    )
    slow = _slow(case, len(case["lam_raw"]))

    def predict(params, x):
        return _encode(params["W"], x) @ params["pred_W"].T + params["pred_b"][None, :]

    def loss(params, step, x, other, mix):
        return mixing.imix_byol(predict(params, x), _encode(slow[step], other), mix)

    def logits(params, step, x, other):
        return mixing.imix_logits(predict(params, x), _encode(slow[step], other), temperature=1.0)

    return _imix(case, names, loss, logits) | {"W_k_after": slow[-1]}


def _input_mix(case: Case):
    return {"mixed": mixing.input_mix(case["x"], case["weights_raw"], case["randind"])}


def _two_c(case: Case, positives: str):
    knobs = {"temperature": case["temperature"], "positives": positives}
    z, proxies, labels = case["embed"], case["proxies"], case["label"]
    loss, grads = case.grad(
        lambda z, p: generation.two_c(z, p, labels, **knobs), "embed", "proxies"
    )
    rows = generation.two_c_rows(z, proxies, labels, **knobs)
    own = generation.two_c_rows(
        z, proxies, labels, temperature=case["temperature"], positives="proxy"
    )
    others = np.array([[j for j in range(len(z)) if j != i] for i in range(len(z))], int).reshape(
        len(z), -1
    )
    cosine = dots("id,jd->ij", unit(z, 1e-8), unit(z, 1e-8))
    return {
        "loss": loss,
        **grads,
        "numerator": jnp.exp(rows.log_numerator),
        "denominator": jnp.exp(rows.log_denominator),
        "loss_rows": rows.loss,
        "proxy_exp": jnp.exp(own.log_numerator),
        "same_class_mask": labels[others] == labels[:, None],
        "sim_exp": jnp.exp(jnp.take_along_axis(cosine, others, axis=1) / case["temperature"]),
    }


def _two_c_ranks(case: Case):
    knobs = {"temperature": case["temperature"], "released_gradient": True, "axis_name": "ranks"}

    def rank(z, labels):
        return jax.value_and_grad(
            lambda z, p: generation.two_c(z, p, labels, **knobs), argnums=(0, 1)
        )(z, case["proxies"])

    losses, (by_rank, by_rank_proxies) = jax.vmap(rank, axis_name="ranks")(
        case["embed"], case["label"]
    )

    def whole(z, proxies):
        return generation.two_c(
            z.reshape(-1, z.shape[-1]),
            proxies,
            case["label"].reshape(-1),
            temperature=case["temperature"],
        )

    loss, grads = case.grad(whole, "embed", "proxies")
    return {
        "loss": loss,
        **grads,
        "loss_ranks": losses,
        "gradrank_embed": by_rank,
        "gradrank_proxies": by_rank_proxies,
    }


def _discriminator(case: Case):
    def loss(d_real, d_fake, z, proxies):
        return generation.contragan_discriminator(
            d_real,
            d_fake,
            z,
            proxies,
            case["label_real"],
            temperature=case["temperature"],
            weight=case["cond_lambda"],
        )

    value, grads = case.grad(loss, "d_real", "d_fake", "embed_real", "proxies")
    return {
        "loss": value,
        **grads,
        "loss_adv": generation.hinge_discriminator(case["d_real"], case["d_fake"]),
        "loss_2c": generation.two_c(
            case["embed_real"], case["proxies"], case["label_real"], temperature=case["temperature"]
        ),
    }


def _generator(case: Case):
    def loss(d_fake, z):
        return generation.contragan_generator(
            d_fake,
            z,
            case["proxies"],
            case["label_fake"],
            temperature=case["temperature"],
            weight=case["cond_lambda"],
        )

    value, grads = case.grad(loss, "d_fake", "embed_fake")
    return {
        "loss": value,
        **grads,
        "loss_adv": generation.hinge_generator(case["d_fake"]),
        "loss_2c": generation.two_c(
            case["embed_fake"], case["proxies"], case["label_fake"], temperature=case["temperature"]
        ),
    }


def _hinge(case: Case):
    real, fake = case["d_real"], case["d_fake"]
    loss, grads = case.grad(generation.hinge_discriminator, "d_real", "d_fake")
    return {
        "loss": loss,
        **grads,
        "loss_g_hinge": generation.hinge_generator(fake),
        "loss_d_vanilla": generation.logistic_discriminator(real, fake),
        "loss_g_vanilla": generation.logistic_generator(fake),
        "loss_d_ls": generation.least_squares_discriminator(real, fake),
        "loss_g_ls": generation.least_squares_generator(fake),
    }


def _leave_one_out(case: Case):
    k, memory = case["zk"], case["queues"]
    loss, grads = case.grad(
        lambda q: spaces.leave_one_out(q, k, memory, temperature=case["temperature"]), "zq"
    )
    rows = spaces.leave_one_out_rows(case["zq"], k, memory, temperature=case["temperature"])
    return {"loss": loss, **grads, "loss_heads": rows.mean(axis=1)}


def _calm(case: Case):
    labels = case["labels_gen"], case["labels_dis"]

    def joint(gen, dis):
        return calm.calm(
            gen,
            labels[0],
            dis,
            labels[1],
            weight_gen=case["weight_gen"],
            weight_dis=case["weight_dis"],
        )

    loss, grads = case.grad(joint, "logits_gen", "logits_dis")
    out = {"loss": loss, **grads}
    for part, targets in zip(("gen", "dis"), labels):
        logits = case[f"logits_{part}"]
        out[f"loss_{part}"] = calm.token_cross_entropy(logits, targets)
        out[f"loglik_rows_{part}"] = calm.token_log_likelihood(logits, targets)
        out[f"decoder_input_{part}"] = calm.shift_right(targets, pad_id=case["pad_id"])
    return out


def _attention(case: Case):
    def support(t, v):
        return video_text.support_set(
            t, v, case["video_id"], temperature=case["temperature"], support=case["support"]
        )

    loss, grads = case.grad(
        lambda t, v: (support(t, v).vectors * case["cotangent"]).sum(), "t", "v"
    )
    result = support(case["t"], case["v"])
    return {
        "loss": loss,
        **grads,
        "allowed": result.allowed,
        "attention": result.attention,
        "entropy": result.entropy,
        "support_vectors": result.vectors,
    }


def _rank(case: Case):
    knobs = {"margin": case["margin"], "reduction": case["reduction"]}
    loss, grads = case.grad(
        lambda t, v: video_text.ranking_loss(t, v, case["video_id"], **knobs), "t", "v"
    )
    text, video = video_text.ranking_rows(case["t"], case["v"], case["video_id"], **knobs)
    return {
        "loss": loss,
        **grads,
        "loss_text_rows": text,
        "loss_video_rows": video,
        "similarity": dots("id,jd->ij", case["t"], case["v"]),
    }


def _mmt(case: Case):
    loss, grads = case.grad(
        lambda s: video_text.max_margin(
            s, margin=case["margin"], count_diagonal=not case["fix_norm"]
        ),
        "similarity",
    )
    value, grad = jax.value_and_grad(video_text.similarity_info_nce)(case["similarity"])
    return {"loss": loss, **grads, "loss_infonce": value, "gradinfonce_similarity": grad}


def _caption(case: Case):
    def loss(logits):
        return case["loss_contrastive"] + case["lam"] * video_text.caption_loss(
            logits, case["labels"]
        )

    value, grads = case.grad(loss, "logits")
    return {
        "loss": value,
        **grads,
        "loss_caption": video_text.caption_loss(case["logits"], case["labels"]),
        "loss_rows": video_text.caption_rows(case["logits"], case["labels"]),
    }


def _network(params, x, normalised, adversarial):
    """The encoder that the files give: a linear map, or convolution, batch norm (its own for
    attacks), ReLU, linear."""
    if "conv_w" in params:
        x = lax.conv_general_dilated(
            x, params["conv_w"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        centred = x - x.mean(axis=(0, 2, 3), keepdims=True)
        x = centred * lax.rsqrt((centred**2).mean(axis=(0, 2, 3), keepdims=True) + 1e-5)
        norm = "bnadv" if adversarial else "bn"
        x = params[f"{norm}_g"][None, :, None, None] * x + params[f"{norm}_b"][None, :, None, None]
        x = jax.nn.relu(x).mean(axis=(2, 3))
    z = x.reshape(x.shape[0], -1) @ params["fc_w"].T + params["fc_b"][None, :]
    return unit(z) if normalised else z


def _clae(case: Case, loss, normalised):
    names = [
        name
        for name in ("bn_b", "bn_g", "bnadv_b", "bnadv_g", "conv_w", "fc_b", "fc_w")
        if name in case
    ]
    params = {name: case[name] for name in names}
    # Both are called for clean and for adversarial examples: traced once.
    loss = jax.jit(loss)
    encode = jax.jit(partial(_network, normalised=normalised), static_argnames="adversarial")
    view = adversarial.adversarial_view(
        partial(encode, params, adversarial=True), loss, case["x_1"], epsilon=case["eps"]
    )
    # An entry whose gradient is rounding noise may move either way: there the authors' own draw of
    # the sign is taken.
    gradient = np.abs(case.numpy("input_grad"))
    noise = gradient <= (1e-5 if case.dtype == np.float32 else 1e-12) * gradient.max()
    x_adv = jnp.where(noise, case.numpy("x_adv").astype(case.dtype), view.x)

    def total(*values):
        params = dict(zip(names, values))
        parts = adversarial.adversarial_contrast(
            loss,
            encode(params, case["x_1"], adversarial=False),
            encode(params, case["x_2"], adversarial=False),
            encode(params, x_adv, adversarial=True),
            weight=case["alpha"],
        )
        return parts.total, parts

    (_, parts), grads = case.grad(total, *names, has_aux=True)
    return {
        "loss": parts.total,
        "loss_clean": parts.clean,
        "loss_adv": parts.adversarial,
        "loss_attack": view.loss,
        "input_grad": view.gradient,
        "x_adv": x_adv,
        **grads,
    }


def _uel(case: Case):
    return partial(inva_spread, temperature=case["temperature"], negative_weight=case["neg_m"])


def _uel_loss(case: Case):
    loss, grads = case.grad(lambda x: _uel(case)(*jnp.split(x, 2)), "features")
    return {"loss": loss, **grads}


def _clae_embeddings(case: Case):
    def parts(z_adv, z_i, z_j):
        return adversarial.adversarial_contrast(
            _nt_xent(case), z_i, z_j, z_adv, weight=case["alpha"]
        )

    names = ("z_adv", "z_i", "z_j")
    loss, grads = case.grad(lambda *z: parts(*z).total, *names)
    result = parts(*(case[name] for name in names))
    return {"loss": loss, **grads, "loss_clean": result.clean, "loss_adv": result.adversarial}


def _nt_xent(case: Case):
    """CLAE's cosine keeps each norm above 1e-8."""

    def loss(z_a, z_b):
        return nt_xent(
            unit(z_a, 1e-8), unit(z_b, 1e-8), temperature=case["temperature"], normalise=False
        )

    return loss


def _local(case: Case, span: int | None):
    """Units of `span` stages, None for one over all of them."""
    stages = sum(name.startswith("A") for name in case.meta["inputs"])
    units = spaces.local_units(stages, span or stages)
    names = [f"A{j + 1}" for j in range(stages)] + [f"W{u + 1}" for u in range(len(units))]

    def parts(*values):
        layers, heads = values[:stages], values[stages:]
        return jnp.stack(
            spaces.local_losses(
                [lambda h, a=a: jnp.tanh(h @ a) for a in layers],
                [lambda h, w=w: h @ w for w in heads],
                jax.jit(partial(nt_xent, temperature=case["temperature"])),
                case["x_1"],
                case["x_2"],
                units=units,
            )
        )

    values = [case[name] for name in names]
    by_unit, pull = jax.vjp(parts, *values)
    grads = jax.vmap(pull)(jnp.eye(len(units)))
    norms = [jnp.sqrt((g**2).sum(axis=(1, 2))) for g in grads[:stages]]
    outputs = spaces.local_features(
        [lambda h, a=a: jnp.tanh(h @ a) for a in values[:stages]],
        jnp.concatenate([case["x_1"], case["x_2"]]),
        units=units,
    ).stages
    return {
        "loss": by_unit.sum(),
        **{f"grad_{name}": g.sum(axis=0) for name, g in zip(names, grads)},
        "unit_stage_grad_norm": jnp.stack(norms, axis=1),
        **{f"h{j + 1}": h for j, h in enumerate(outputs)},
        **{f"loss_unit{u + 1}": value for u, value in enumerate(by_unit)},
    }


TABLE = {
    "imix-npair": Golden(_npair, f32=2e-6),
    "imix-npairnone": Golden(_npair, f32=2e-6, grad=5e-6),
    "imix-moco": Golden(_moco, f32=2e-6, loss=5e-6, grad=1e-5),
    "imix-mocon": Golden(_mocon, f32=2e-6, grad=5e-6),
    "imix-byol": Golden(_byol, f32=2e-6),
    "imix-cutmixnpair": Golden(_npair, f32=2e-6, loss=5e-6, grad=1e-5),
    "imix-cutmixmocon": Golden(_mocon, f32=2e-6, loss=1e-5, grad=2e-5),
    "imix-inputmix": Golden(_input_mix, f32=2e-6),
    "clae-simclr": Golden(
        lambda case: _clae(case, _nt_xent(case), False), f32=2e-6, loss=5e-6, grad=1e-5
    ),
    "clae-plain": Golden(
        lambda case: _clae(case, partial(info_nce, temperature=case["temperature"]), True),
        f32=2e-6,
        loss=5e-6,
        grad=2e-5,
    ),
    "clae-uel": Golden(lambda case: _clae(case, _uel(case), True), f32=2e-6, loss=1e-5, grad=5e-5),
    "clae-uelloss": Golden(_uel_loss, f32=5e-5, grad=5e-4),
    "clae-ntxent": Golden(_clae_embeddings, f32=2e-6, grad=5e-6),
    "contragan-2c": Golden(lambda case: _two_c(case, "class"), f32=5e-6, loss=2e-6, grad=2e-6),
    "contragan-2cproxy": Golden(lambda case: _two_c(case, "proxy")),
    "contragan-dist": Golden(_two_c_ranks),
    "contragan-d": Golden(_discriminator, f32=2e-6),
    "contragan-g": Golden(_generator, f32=2e-6),
    "contragan-hinge": Golden(_hinge, f32=2e-6),
    "supportset-attention": Golden(_attention),
    "supportset-rank": Golden(_rank),
    "supportset-mmtrank": Golden(_mmt, f32=2e-6),
    "supportset-caption": Golden(_caption),
    "calm-joint": Golden(_calm),
    "looc-loss": Golden(_leave_one_out),
    "loco-overlap": Golden(lambda case: _local(case, 2), f32=3e-5),
    "loco-gim": Golden(lambda case: _local(case, 1), f32=3e-5),
    "loco-e2e": Golden(lambda case: _local(case, None), f32=3e-5),
}
