"""Optimisers, schedules and gradient clipping of set A."""

import jax
import jax.numpy as jnp
import optax

from cl_jax.training import optim
from tests.goldens import Golden


def _trained(case, tx, momentum_name=None):
    """One update for each learning rate: parameters (and the momentum buffer) after each, on the
    first axis."""
    params, grads = case.group("param."), case.group("grads.")
    # "~" stands for the "/" of Haiku module names, "." splits module and parameter.
    paths = {name: name.replace(".", "/") for name in params}
    params = {paths[name]: value for name, value in params.items()}
    state = tx.init(params)
    outputs = {f"param_after.{name}": [] for name in paths}
    for step in range(len(case["lr"])):
        updates, state = tx.update(
            {paths[name]: grads[name][step] for name in paths}, state, params
        )
        params = optax.apply_updates(params, updates)
        buffers = [
            s.trace
            for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, optax.TraceState))
            if isinstance(s, optax.TraceState)
        ]
        for name, path in paths.items():
            outputs[f"param_after.{name}"].append(params[path])
            if momentum_name:
                outputs.setdefault(f"{momentum_name}.{name}", []).append(buffers[0][path])
    return {name: jnp.stack(values) for name, values in outputs.items()}


def _rates(case):
    rates = case["lr"]
    return lambda step: rates[step]


def _simclr_lars(case):
    keep = optim.decay_mask(exclude_paths=("batch_normalization", "bias", "head_supervised"))
    return _trained(
        case,
        optim.lars_simclr(
            _rates(case),
            weight_decay=case["weight_decay"],
            momentum=case["momentum"],
            trust_coefficient=case["eeta"],
            nesterov=bool(case["nesterov"]),
            mask=keep,
        ),
        "momentum_after",
    )


def _byol_lars(case):
    return _trained(
        case,
        optim.lars_byol(
            _rates(case),
            weight_decay=case["weight_decay"],
            momentum=case["momentum"],
            trust_coefficient=case["eta"],
            mask=optim.decay_mask(exclude_paths=("/b$", "norm.*/")),
        ),
        "mu_after",
    )


def _mocov3_lars(case):
    return _trained(
        case,
        optim.lars_byol(
            _rates(case),
            weight_decay=case["weight_decay"],
            momentum=case["momentum"],
            trust_coefficient=case["trust_coefficient"],
            mask=optim.decay_mask(exclude_ndim=1),
        ),
        "mu_after",
    )


def _swav_larc(case):
    return _trained(
        case,
        optim.larc_sgd(
            _rates(case),
            weight_decay=case["weight_decay"],
            momentum=case["momentum"],
            trust_coefficient=case["trust_coefficient"],
            clip=bool(case["clip"]),
        ),
    )


def _simclr_lr(case):
    total, warmup = optim.simclr_steps(
        num_examples=case["num_examples"],
        batch_size=case["train_batch_size"],
        total_epochs=case["train_epochs"],
        warmup_epochs=case["warmup_epochs"],
    )
    base = optim.scaled_learning_rate(
        case["base_lr"], case["train_batch_size"], str(case.numpy("learning_rate_scaling"))
    )
    return {
        "lr_values": optim.warmup_cosine(base=base, total_steps=total, warmup_steps=warmup)(
            case["step"]
        ),
        "total_steps": total,
        "warmup_steps": warmup,
    }


def _byol_schedule(case):
    base = optim.scaled_learning_rate(case["base_lr"], case["batch_size"], "linear")
    lr = optim.warmup_cosine(
        base=base, total_steps=case["total_steps"], warmup_steps=case["warmup_steps"]
    )
    decay = optim.warmup_cosine(base=case["base_ema"], final=1.0, total_steps=case["total_steps"])
    return {"lr_values": lr(case["step"]), "ema_values": decay(case["step"])}


def _mocov3_schedule(case):
    lr = optim.warmup_cosine(
        base=case["lr"], total_steps=case["epochs"], warmup_steps=case["warmup_epochs"]
    )
    momentum = optim.warmup_cosine(base=case["m0"], final=1.0, total_steps=case["epochs"])
    return {"lr_values": lr(case["epoch"]), "m_values": momentum(case["epoch"])}


def _swav_lr(case):
    per_epoch = case["iters_per_epoch"]
    schedule = optim.linspace_warmup_cosine(
        base=case["base_lr"],
        start=case["start_warmup"],
        final=case["final_lr"],
        total_steps=case["epochs"] * per_epoch,
        warmup_steps=case["warmup_epochs"] * per_epoch,
    )
    return {"lr_values": schedule(case["iteration"])}


def _dino_cosine(case):
    per_epoch = case["iters_per_epoch"]
    schedule = optim.linspace_warmup_cosine(
        base=case["base"],
        start=case["start_warmup"],
        final=case["final"],
        total_steps=case["epochs"] * per_epoch,
        warmup_steps=case["warmup_epochs"] * per_epoch,
    )
    return {"values": schedule(case["iteration"])}


def _simsiam_lr(case):
    """Five steps an epoch; the second step of each."""
    schedule = optim.per_epoch(
        optim.warmup_cosine(base=case["init_lr"], total_steps=5 * case["epochs"]), steps_per_epoch=5
    )
    step = 5 * case["epoch"] + 1
    return {
        "lr_values": schedule(step),
        "lr_predictor_fixed": optim.constant(base=case["init_lr"])(step),
    }


def _moco_lr(case):
    if case["cos"]:
        schedule = optim.warmup_cosine(base=case["lr"], total_steps=5 * case["epochs"])
    else:
        schedule = optim.step_decay(
            base=case["lr"], milestones=[5 * int(m) for m in case.numpy("milestones")]
        )
    return {"lr_values": optim.per_epoch(schedule, steps_per_epoch=5)(5 * case["epoch"] + 1)}


def _dino_clip(case):
    grads = {name: case[f"g_{name}"] for name in sorted(n[2:] for n in case if n.startswith("g_"))}
    clipped, _ = optim.clip_per_tensor(case["clip"]).update(grads, optax.EmptyState())
    return {f"clipped_{name}": value for name, value in clipped.items()} | {
        "norms": jnp.stack([optax.global_norm(g) for g in grads.values()])
    }


TABLE = {
    "simclr-lars": Golden(_simclr_lars, f64=1e-9, f32=2e-6),
    "byol-lars": Golden(_byol_lars, f64=1e-9, f32=2e-6),
    "mocov3-lars": Golden(_mocov3_lars, f64=1e-9, f32=2e-6),
    "swav-larc": Golden(_swav_larc, f64=1e-9, f32=2e-6),
    # The authors' program computes these rates in float32.
    "simclr-lr": Golden(_simclr_lr, f64=1e-6, f32=1e-6),
    "byol-schedule": Golden(_byol_schedule, f64=1e-6, f32=1e-6),
    "mocov3-schedule": Golden(_mocov3_schedule, f64=1e-12, f32=1e-6),
    "swav-lr": Golden(_swav_lr, f64=1e-12, f32=1e-6),
    "dino-cosine": Golden(_dino_cosine, f64=1e-12, f32=1e-6),
    "simsiam-lr": Golden(_simsiam_lr, f64=1e-12, f32=1e-6),
    "moco-lr": Golden(_moco_lr, f64=1e-12, f32=1e-6),
    "dino-clip": Golden(_dino_clip, f64=1e-9, f32=2e-6),
}
