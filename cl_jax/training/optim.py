"""Optimisers and schedules as the authors have them, built from optax.

A schedule is a function of the number of updates made before this one (0 at the first), Python or
traced. Every optimiser here takes a number or a schedule as `learning_rate`. `build` makes one from
a config section."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cl_jax.core import settings
from cl_jax.core.clocks import Steps
from cl_jax.core.errors import ConfigError
from cl_jax.core.names import nearest

Schedule = Callable[[Any], jax.Array]
Mask = Callable[[Any], Any]


# Schedules --------------------------------------
# Not optax's: these take fractional steps, and the ends that the authors' programs have.


def warmup_cosine(
    *, base: float, total_steps: float, warmup_steps: float = 0, final: float = 0.0
) -> Schedule:
    """base * t / warmup_steps, then a half cosine from base to `final` at total_steps, where it
    stays.

    SimCLR (`simclr_steps`), BYOL, MoCo v3. Steps may be fractional epochs: MoCo v3's lr of epoch e
    is the same line. With warmup_steps=0 also the momentum of a target: BYOL, MoCo v3 and DINO go
    from base to final=1."""

    def schedule(step):
        t = _real(step)
        along = jnp.clip((t - warmup_steps) / max(total_steps - warmup_steps, 1e-9), 0, 1)
        cosine = final + (base - final) * 0.5 * (1 + jnp.cos(jnp.pi * along))
        return jnp.where(t < warmup_steps, base * t / max(warmup_steps, 1e-9), cosine)

    return schedule


def warmup_linear(
    *, base: float, total_steps: float, warmup_steps: float = 0, final: float = 0.0
) -> Schedule:
    """base * t / warmup_steps, then a straight line from base to `final` at total_steps, where it
    stays: BERT and what is fine-tuned from it (SimCSE)."""

    def schedule(step):
        t = _real(step)
        along = jnp.clip((t - warmup_steps) / max(total_steps - warmup_steps, 1e-9), 0, 1)
        return jnp.where(
            t < warmup_steps, base * t / max(warmup_steps, 1e-9), base + (final - base) * along
        )

    return schedule


def linspace_warmup_cosine(
    *, base: float, total_steps: int, warmup_steps: int = 0, start: float = 0.0, final: float = 0.0
) -> Schedule:
    """warmup_steps values from `start` to `base`, both included, then a half cosine that starts at
    `base` again.

    SwAV, DeepCluster-v2 and DINO. The base value occurs twice at the junction, and `final` is only
    approached."""

    def schedule(step):
        t = _real(step)
        ramp = start + (base - start) * t / max(warmup_steps - 1, 1)
        along = jnp.clip((t - warmup_steps) / max(total_steps - warmup_steps, 1), 0, 1)
        cosine = final + 0.5 * (base - final) * (1 + jnp.cos(jnp.pi * along))
        return jnp.where(t < warmup_steps, ramp, cosine)

    return schedule


def step_decay(
    *, base: float, milestones: Sequence[float], factor: float | Sequence[float] = 0.1
) -> Schedule:
    """base times the factor of each milestone at or before t: MoCo v1, PCL, InstDisc, linear
    probes.

    factor: of every milestone, or one for each (InvaSpread).

    Raises:
      ValueError: another number of factors than of milestones.
    """
    factors = tuple(factor) if isinstance(factor, Sequence) else (factor,) * len(milestones)
    if len(factors) != len(milestones):
        raise ValueError(
            f"{len(factors)} factors for {len(milestones)} milestones; expected one number, or "
            f"one for each."
        )

    def schedule(step):
        passed = [
            jnp.where(_real(step) >= milestone, each, 1.0)
            for milestone, each in zip(milestones, factors)
        ]
        return math.prod(passed, start=base * jnp.ones_like(_real(step)))

    return schedule


def constant(*, base: float) -> Schedule:
    """base."""
    return lambda step: jnp.full(jnp.shape(step), base, _real(step).dtype)


def warmed_up(schedule: Schedule, *, warmup_steps: float) -> Schedule:
    """A schedule times t / warmup_steps during the first `warmup_steps`: MiCE. W-MSE's warm-up is
    one step ahead of it, and SimMIM's starts above 0."""
    if warmup_steps <= 0:
        return schedule
    return lambda step: schedule(step) * jnp.minimum(_real(step) / warmup_steps, 1.0)


def per_epoch(schedule: Schedule, *, steps_per_epoch: int) -> Schedule:
    """Holds a schedule of steps at the value of each epoch's first step: MoCo v1/v2, SimSiam,
    linear probes."""
    return lambda step: schedule(jnp.asarray(step) // steps_per_epoch * steps_per_epoch)


def scaled_learning_rate(learning_rate: float, batch_size: int, scaling: str) -> float:
    """The rate for a batch: "linear" is learning_rate * batch_size / 256, "sqrt" is learning_rate *
    sqrt(batch_size), "none" is the rate itself.

    batch_size counts images, not views.

    Raises:
      ValueError: an unknown scaling.
    """
    scales = {"linear": batch_size / 256, "sqrt": batch_size**0.5, "none": 1.0}
    if scaling not in scales:
        raise ValueError(f"learning-rate scaling {scaling!r} is unknown; have {', '.join(scales)}.")
    return learning_rate * scales[scaling]


def simclr_steps(
    *, num_examples: int, batch_size: int, total_epochs: float, warmup_epochs: float
) -> tuple[int, int]:
    """(total steps, warm-up steps) as SimCLR counts them: N * E // B + 1 and round(W * N // B)."""
    return int(num_examples * total_epochs // batch_size) + 1, round(
        warmup_epochs * num_examples // batch_size
    )


def _real(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


# Masks --------------------------------------


def path_of(path: Sequence[Any]) -> str:
    """A leaf's place in its tree as one string: "encoder/stage1_block1/norm1/scale"."""
    return "/".join(
        str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))
        for part in path
    )


def decay_mask(*, exclude_ndim: int = -1, exclude_paths: Sequence[str] = ()) -> Mask:
    """params -> tree of bool: False for leaves of at most `exclude_ndim` axes or whose path
    matches a pattern.

    Patterns are regular expressions searched in `path_of`; a plain word is one. exclude_ndim=1
    leaves out biases and the scales and shifts of norms (MoCo v3's LARS, DINO's decay, and what
    SimCLR and BYOL exclude by name)."""
    _check_patterns("exclude_paths", exclude_paths)

    def keep(path, leaf):
        return jnp.ndim(leaf) > exclude_ndim and not _matches(path, exclude_paths)

    return lambda params: jax.tree_util.tree_map_with_path(keep, params)


def _matches(path: Sequence[Any], patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, path_of(path)) for pattern in patterns)


# Optimisers --------------------------------------


def lars_simclr(
    learning_rate: float | Schedule,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    nesterov: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """SimCLR's LARS: the learning rate is inside the momentum buffer.

    u = g + weight_decay w,  r = trust_coefficient ||w|| / ||u|| (1 where a norm is 0),  v <-
    momentum v + lr r u, w <- w - v. Leaves that `mask` leaves out are neither decayed nor rescaled.
    `optax.lars` makes the same steps with a buffer of the other sign. You et al., arXiv
    1708.03888."""
    return optax.chain(
        _trust(weight_decay, trust_coefficient, mask),
        _scale(learning_rate),
        optax.trace(momentum, nesterov),
        optax.scale(-1.0),
    )


def lars_byol(
    learning_rate: float | Schedule,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """LARS of BYOL, MoCo v3 and DINO: the learning rate is outside, v <- momentum v + r u, w <- w -
    lr v."""
    return optax.chain(
        _trust(weight_decay, trust_coefficient, mask),
        optax.trace(momentum),
        _scale(learning_rate),
        optax.scale(-1.0),
    )


def larc_sgd(
    learning_rate: float | Schedule,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    clip: bool = False,
    nesterov: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Apex's LARC around SGD (SwAV, DeepCluster-v2, SimSiam's probe: on every parameter), and with
    `clip` and a mask solo-learn's LARS.

    r = trust_coefficient ||w|| / (||g|| + weight_decay ||w|| + 1e-8),  u = r (g + weight_decay w);
    u = g where a norm is 0 (so a fresh bias takes its first step at the full rate);  v <- momentum
    v + u,  w <- w - lr v. `clip` puts min(r / lr, 1) for r. Where `mask` is False u = g.
    """

    def scale(g, w, lr):
        w_norm, g_norm = (jnp.sqrt(jnp.sum(jnp.square(x))) for x in (w, g))
        ratio = trust_coefficient * w_norm / (g_norm + weight_decay * w_norm + 1e-8)
        if clip:
            ratio = jnp.minimum(ratio / lr, 1.0)
        return jnp.where((w_norm > 0) & (g_norm > 0), ratio * (g + weight_decay * w), g)

    def update(updates, state, params):
        lr = learning_rate(state.count) if callable(learning_rate) else learning_rate
        updates = jax.tree.map(lambda g, w: scale(g, w, lr), updates, params)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    larc = optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update
    )
    return optax.chain(
        larc if mask is None else optax.masked(larc, mask),
        optax.trace(momentum, nesterov),
        _scale(learning_rate),
        optax.scale(-1.0),
    )


def sgd(
    learning_rate: float | Schedule,
    *,
    weight_decay: float | Schedule = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """PyTorch's SGD: v <- momentum v + g + weight_decay w,  w <- w - lr v; decay is coupled (it is
    in the buffer)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.trace(momentum, nesterov),
        _scale(learning_rate),
        optax.scale(-1.0),
    )


def adamw(
    learning_rate: float | Schedule,
    *,
    weight_decay: float | Schedule = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled decay: w <- w - lr (m / (sqrt(v) + eps) + weight_decay w), both moments
    bias-corrected."""
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask),
        _scale(learning_rate),
        optax.scale(-1.0),
    )


def muon(
    learning_rate: float | Schedule,
    *,
    weight_decay: float | Schedule = 0.0,
    momentum: float = 0.95,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Kernels move along an orthogonal matrix near their momentum, all else by `adamw`.

    w <- w - lr (0.2 sqrt(max(n, m)) O + weight_decay w): O is Nesterov's momentum of the gradient,
    as a matrix [n, m] of all inputs of a kernel by its outputs, after five Newton-Schulz steps,
    which take its singular values to between 0.7 and 1.2. The factor gives O the root mean square
    of an Adam step, so that both halves share the rate. A kernel is a parameter of that name, with
    the outputs on its last axis; embeddings, tokens and prototypes are not.

    Reference: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the
      factor is of Liu et al. 2025, arXiv 2502.16982, section 2.2.
    """
    kernels = optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.stateless(lambda updates, params: jax.tree.map(_orthogonal, updates)),
        optax.add_decayed_weights(weight_decay, mask),
        _scale(learning_rate),
        optax.scale(-1.0),
    )
    rest = adamw(learning_rate, weight_decay=weight_decay, b1=b1, b2=b2, eps=eps, mask=mask)
    labels = _labels({"kernels": (r"(^|/)kernel$",)}, default="rest")
    return optax.partition({"kernels": kernels, "rest": rest}, labels)


def _orthogonal(x: jax.Array) -> jax.Array:
    """`muon`'s direction of a kernel [..., m]. Each Newton-Schulz step multiplies the matrix by a
    polynomial of its Gram matrix; all five are multiplied in the smaller of its two, which is
    cheaper than the matrix itself five times."""
    a, b, c = 3.4445, -4.7750, 2.0315
    matrix = x.reshape(-1, x.shape[-1])
    matrix = matrix / (jnp.linalg.norm(matrix) + 1e-7)
    wide = matrix.shape[0] < matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    one = product = jnp.eye(len(gram), dtype=x.dtype)
    for number in range(5):
        step = a * one + b * gram + c * gram @ gram
        product = step @ product if number else step
        if number < 4:
            gram = step @ gram @ step
    out = product @ matrix if wide else matrix @ product
    return 0.2 * math.sqrt(max(matrix.shape)) * out.reshape(x.shape)


def clip_per_tensor(max_norm: float, *, eps: float = 1e-6) -> optax.GradientTransformation:
    """DINO's clipping: each parameter's gradient times min(1, max_norm / (norm + eps)), apart from
    the others."""

    def clip(g):
        norm = jnp.sqrt(jnp.sum(jnp.square(g)))
        return g * jnp.minimum(1.0, max_norm / (norm + eps))

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))


def freeze_until(
    steps: int,
    path_contains: Sequence[str],
    optimizer: Callable[[int], optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Freezes the parameters whose path matches a pattern for the first `steps` updates.

    Frozen as with a gradient of None in PyTorch: no step, no decay, no change of momenta or of
    Adam's count. So those parameters have an optimiser of their own, optimizer(steps); the others
    have optimizer(0). The argument is what schedules must add to its count:
    optimizer = lambda offset: sgd(lambda step: lr(step + offset), ...).
    SwAV's and DeepCluster-v2's prototypes, DINO's last layer.
    """
    _check_patterns("path_contains", path_contains)

    def held(step):
        return step >= steps

    groups = {"moving": optimizer(0), "held": optax.conditionally_mask(optimizer(steps), held)}
    return optax.partition(groups, _labels({"held": path_contains}, default="moving"))


def _trust(
    weight_decay: float, trust_coefficient: float, mask: Mask | None
) -> optax.GradientTransformation:
    trust = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient),
    )
    return trust if mask is None else optax.masked(trust, mask)


def _scale(learning_rate: float | Schedule) -> optax.GradientTransformation:
    return (
        optax.scale_by_schedule(learning_rate)
        if callable(learning_rate)
        else optax.scale(learning_rate)
    )


def _labels(patterns: dict[str, Sequence[str]], default: str) -> Callable[[Any], Any]:
    """params -> tree of group names: the first whose patterns match the path."""

    def label(path, leaf):
        return next((name for name, words in patterns.items() if _matches(path, words)), default)

    return lambda params: jax.tree_util.tree_map_with_path(label, params)


# From a config --------------------------------------


OPTIMIZERS = ("lars_simclr", "lars_byol", "larc_sgd", "sgd", "adamw", "muon")
SCHEDULES = ("warmup_cosine", "warmup_linear", "linspace_warmup_cosine", "step_decay", "constant")


def build(
    *,
    name: str,
    learning_rate: float,
    batch_size: int,
    steps_per_epoch: int,
    total_steps: int,
    learning_rate_scaling: str = "linear",
    schedule: str = "warmup_cosine",
    warmup_epochs: float = 0.0,
    warmup_steps: Steps | None = None,
    warmup_start: float = 0.0,
    final_learning_rate: float = 0.0,
    schedule_per_epoch: bool = False,
    milestones_epochs: Sequence[float] = (),
    decay_factor: float | Sequence[float] = 0.1,
    weight_decay: float = 0.0,
    final_weight_decay: float | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust_coefficient: float = 0.001,
    larc_clip: bool = False,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    exclude_ndim: int | None = None,
    exclude_paths: Sequence[str] = (),
    clip_global_norm: float | None = None,
    clip_tensor_norm: float | None = None,
    freeze_epochs: float | None = None,
    freeze_steps: Steps | None = None,
    freeze_paths: Sequence[str] = (),
    constant_lr_paths: Sequence[str] = (),
    parts: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> tuple[optax.GradientTransformation, Schedule]:
    """An optimiser from a config's final values: (transformation, learning rate as a function of
    the step, for logs).

    Args:
      name: "lars_simclr", "lars_byol", "larc_sgd", "sgd", "adamw" or "muon".
      learning_rate, learning_rate_scaling: before and by `scaled_learning_rate`; the other rates
        are not scaled.
      batch_size: global, in images.
      total_steps: where the schedule ends.
      schedule: "warmup_cosine", "warmup_linear", "linspace_warmup_cosine" (starts at warmup_start),
        "step_decay" (milestones_epochs, decay_factor) or "constant"; the first three end at
        final_learning_rate.
      warmup_epochs, warmup_steps: length of the warm-up, of every schedule; steps win where given
        (`simclr_steps`).
      schedule_per_epoch: hold the value during each epoch.
      final_weight_decay: where a half cosine takes the decay during the run (DINO); adamw and sgd
        only.
      exclude_ndim, exclude_paths: what is not decayed, nor rescaled by LARS: see `decay_mask`. None
        is 1 for LARS and nothing for the others, which decay all parameters as MoCo and SimSiam do.
      clip_global_norm, clip_tensor_norm: gradient clipping before all else, over all parameters or
        `clip_per_tensor`.
      freeze_epochs, freeze_steps, freeze_paths: `freeze_until`; steps win where given, -1 holds
        throughout, 0 freezes nothing.
      constant_lr_paths: parameters that keep the scaled learning rate throughout (SimSiam's
        predictor).
      parts: {name: {"paths": patterns, setting: value, ...}}: parameters whose path matches a
        pattern are moved with the settings of this section instead, for instance
        parts={"discriminator": {"paths": ("disc",), "learning_rate": 4e-4}}. The first part that
        matches has a parameter. Clipping stays over all parameters. The learning rate that is
        returned is that of the rest.

    A setting that the chosen name or schedule does not read is ignored, and so is a pattern that
    matches no parameter: `optimizer_settings` finds both.

    Raises:
      ValueError: unknown name, schedule or scaling; a string in place of patterns, or one that is
        not a regular expression.
    """
    section = dict(locals())
    _check_parts(parts)
    for key in ("exclude_paths", "freeze_paths", "constant_lr_paths"):
        _check_patterns(f"optimizer.{key}", section[key])
    if parts:
        return _of_parts(section)
    base = scaled_learning_rate(learning_rate, batch_size, learning_rate_scaling)
    if warmup_steps is None:
        warmup_steps = round(warmup_epochs * steps_per_epoch)
    if warmup_steps > total_steps:
        raise ValueError(
            f"the warm-up of {warmup_steps} steps (warmup_epochs={warmup_epochs}) is longer than "
            f"the run of {total_steps}; shorten it or train longer."
        )
    lr = _schedule(section, base=base, warmup_steps=warmup_steps)
    if schedule_per_epoch:
        lr = per_epoch(lr, steps_per_epoch=steps_per_epoch)
    decay: float | Schedule = weight_decay
    if final_weight_decay is not None:
        if name not in ("adamw", "sgd"):
            raise ValueError(f"final_weight_decay is for adamw and sgd, not {name}; leave it None.")
        decay = linspace_warmup_cosine(
            base=weight_decay, final=final_weight_decay, total_steps=total_steps
        )
    if exclude_ndim is None:
        exclude_ndim = 1 if name in ("lars_simclr", "lars_byol") else -1
    keep = decay_mask(exclude_ndim=exclude_ndim, exclude_paths=exclude_paths)
    trust = {"momentum": momentum, "trust_coefficient": trust_coefficient}
    larc_keep = keep if exclude_ndim >= 0 or exclude_paths else None
    optimizers: dict[str, Callable[..., optax.GradientTransformation]] = {
        "lars_simclr": partial(lars_simclr, nesterov=nesterov, mask=keep, **trust),
        "lars_byol": partial(lars_byol, mask=keep, **trust),
        "larc_sgd": partial(larc_sgd, clip=larc_clip, nesterov=nesterov, mask=larc_keep, **trust),
        "sgd": partial(sgd, momentum=momentum, nesterov=nesterov, mask=keep),
        "adamw": partial(adamw, b1=b1, b2=b2, eps=eps, mask=keep),
        "muon": partial(muon, momentum=momentum, b1=b1, b2=b2, eps=eps, mask=keep),
    }
    if name not in optimizers:
        raise ValueError(f"optimizer {name!r} is unknown; have {', '.join(OPTIMIZERS)}.")
    make = optimizers[name]

    def all_groups(offset):
        later = _later(decay, offset)
        moving = make(_later(lr, offset), weight_decay=later)
        if not constant_lr_paths:
            return moving
        groups = {"moving": moving, "constant": make(constant(base=base), weight_decay=later)}
        return optax.partition(groups, _labels({"constant": constant_lr_paths}, default="moving"))

    if freeze_steps is None:
        freeze_steps = round((freeze_epochs or 0.0) * steps_per_epoch)
    held = total_steps if freeze_steps < 0 else freeze_steps
    tx = freeze_until(held, freeze_paths, all_groups) if held and freeze_paths else all_groups(0)
    return _clipped(tx, clip_global_norm, clip_tensor_norm), lr


def _schedule(section: Mapping[str, Any], *, base: float, warmup_steps: int) -> Schedule:
    """The schedule that a section names, with its rate scaled and its warm-up in steps."""
    name, total_steps = section["schedule"], section["total_steps"]
    final = section["final_learning_rate"]
    along = dict(base=base, final=final, total_steps=total_steps, warmup_steps=warmup_steps)
    start, factor = section["warmup_start"], section["decay_factor"]
    milestones = [epoch * section["steps_per_epoch"] for epoch in section["milestones_epochs"]]
    schedules: Mapping[str, Callable[[], Schedule]] = {
        "warmup_cosine": lambda: warmup_cosine(**along),
        "warmup_linear": lambda: warmup_linear(**along),
        "linspace_warmup_cosine": lambda: linspace_warmup_cosine(start=start, **along),
        "step_decay": lambda: warmed_up(
            step_decay(base=base, milestones=milestones, factor=factor), warmup_steps=warmup_steps
        ),
        "constant": lambda: warmed_up(constant(base=base), warmup_steps=warmup_steps),
    }
    if name not in schedules:
        raise ValueError(f"schedule {name!r} is unknown; have {', '.join(SCHEDULES)}.")
    return schedules[name]()


# No part has its own of these.
_OF_THE_WHOLE = {"parts", "clip_global_norm", "clip_tensor_norm"}
_OF_THE_RUN = {"batch_size", "steps_per_epoch", "total_steps"}


def _check_parts(parts: Mapping[str, Mapping[str, Any]]) -> None:
    known = inspect.signature(build).parameters.keys() - _OF_THE_WHOLE - _OF_THE_RUN
    for name, part in parts.items():
        where = f"optimizer.parts.{name}"
        paths = part.get("paths", ())
        _check_patterns(f"{where}.paths", paths)
        if not paths or name == "rest":
            raise ValueError(
                f"{where}: expected paths, patterns of the parameters that it moves"
                + ("; 'rest' is the name of those of no part." if name == "rest" else ".")
            )
        changes = {key: value for key, value in part.items() if key != "paths"}
        for key in changes:
            if key not in known:
                raise ValueError(
                    f"{where} has no setting {key!r}{nearest(key, known)}; "
                    "clipping and the run's length are of all parts."
                )
        settings.check(where, build, changes)


def _check_patterns(where: str, patterns: Sequence[str]) -> None:
    # A string would be read letter by letter.
    settings.check_value(where, patterns, Sequence[str])
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{pattern!r} is not a regular expression: {error}.") from None


def _of_parts(section: Mapping[str, Any]) -> tuple[optax.GradientTransformation, Schedule]:
    """`build` with settings of its own for each part."""
    shared = {key: value for key, value in section.items() if key not in _OF_THE_WHOLE}
    rest, rate = build(**shared)
    optimizers = {"rest": rest}
    patterns: dict[str, Sequence[str]] = {}
    for name, part in section["parts"].items():
        changes = dict(part)
        patterns[name] = tuple(changes.pop("paths"))
        optimizers[name] = build(**(shared | changes))[0]
    tx = optax.partition(optimizers, _labels(patterns, default="rest"))
    return _clipped(tx, section["clip_global_norm"], section["clip_tensor_norm"]), rate


def _clipped(
    tx: optax.GradientTransformation, global_norm: float | None, tensor_norm: float | None
) -> optax.GradientTransformation:
    clips = []
    if global_norm is not None:
        clips.append(optax.clip_by_global_norm(global_norm))
    if tensor_norm is not None:
        clips.append(clip_per_tensor(tensor_norm))
    return optax.chain(*clips, tx) if clips else tx


def _later(value: float | Schedule, offset: int) -> Any:
    if not callable(value) or offset == 0:
        return value
    return lambda step: value(step + offset)
