"""iBOT (Zhou et al. 2021, arXiv 2111.07832), and DINOv2's recipe of it (Oquab et al. 2023, arXiv
2304.07193): DINO on the class token, and the same distillation at hidden patches.

The student sees global crops with some patches hidden, and small crops; its slow copy, the teacher,
sees the global crops whole. The student learns the teacher's distribution over prototypes, for the
class token of every other view and for each hidden patch of the same view. DINOv2 adds KoLeo, which
pushes the class tokens of a batch apart, and may balance the teacher by Sinkhorn in place of a
centre. Evaluations read the teacher."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax import losses
from cl_jax.core.ema import ema_of_params
from cl_jax.core.keys import example_keys, view_keys
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import applier
from cl_jax.core.parallel import total
from cl_jax.encoders.vit import ViT
from cl_jax.heads import weight_norm
from cl_jax.memory import centre as centres
from cl_jax.training import optim
from cl_jax.views import View, draw, fields, masks

OWN = 2**16  # with a view's number, folded into an example's key where a view folds in its number
MASK, DROP = 0, 1  # folded into that
BY_VIEW = ("student", "teacher", "student_patches", "teacher_patches", "mask")  # of the outputs


class Network(nn.Module):
    """Transformer with DINO's head on the class token, and on the patches where `patches`: the same
    head, or one of their own. Returns {"cls": [B, K], "patches": [B, L, K] or None, "h": [B, D],
    "blocks": [B, n * D]}."""

    encoder: ViT
    head: nn.Module
    patch_head: nn.Module | None

    def __call__(
        self,
        images: jax.Array,
        train: bool,
        mask: jax.Array | None = None,
        drop_keys: jax.Array | None = None,
        patches: bool = False,
    ) -> dict[str, jax.Array | None]:
        found = self.encoder(images, train=train, mask=mask, drop_keys=drop_keys)
        each = None
        if patches:
            tokens = found["tokens"][:, 1:]
            head = self.head if self.patch_head is None else self.patch_head
            rows = head(tokens.reshape(-1, tokens.shape[-1]), train=train)
            each = rows.reshape(*tokens.shape[:2], -1)
        return {
            "cls": self.head(found["tokens"][:, 0], train=train),
            "patches": each,
            "h": found["h"],
            "blocks": found["blocks"].reshape(images.shape[0], -1),
        }


class Masks(NamedTuple):
    """How patches of global crops are hidden: `make`'s mask_shape, mask_probability, mask_ratio and
    smallest_block."""

    shape: str
    probability: float
    ratio: tuple[float, float]
    smallest: int | None


class Temperatures(NamedTuple):
    """Of student and teacher; the teacher's rise from `start` over `warmup` epochs or, with
    `per_step`, steps."""

    student: float
    start: float
    of_class: float
    of_patch: float
    warmup: int
    per_step: bool


class Balance(NamedTuple):
    """What keeps the teacher's distribution from collapsing: `make`'s centring, centre_momentum,
    centre_hidden and sinkhorn_iterations."""

    centring: str
    momentum: float
    hidden: bool
    iterations: int


class Weights(NamedTuple):
    """Of the terms of the loss."""

    of_class: float
    of_patch: float
    koleo: float


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    num_global: int = 2,
    num_prototypes: int = 8192,
    hidden_dim: int = 2048,
    bottleneck_dim: int = 256,
    head_norm: bool = False,
    norm_last_layer: bool = False,
    shared_head: bool = True,
    class_weight: float = 1.0,
    patch_weight: float = 1.0,
    koleo_weight: float = 0.0,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.07,
    patch_temperature: float = 0.07,
    teacher_temperature_start: float = 0.04,
    teacher_warmup_epochs: int = 30,
    temperature_per_step: bool = False,
    momentum: float = 0.996,
    centring: str = "centre",
    centre_momentum: float = 0.9,
    centre_hidden: bool = False,
    sinkhorn_iterations: int = 3,
    mask_shape: str = "blocks",
    mask_probability: float = 0.5,
    mask_ratio: tuple[float, float] = (0.1, 0.5),
    smallest_block: int | None = None,
) -> Method:
    """iBOT.

    encoder: a `vit` with mask_token=True. views: the first `num_global` are the global crops, of
      one size.
    num_prototypes, hidden_dim, bottleneck_dim, norm_last_layer: of the head, as in `dino`.
      shared_head: one head for class token and patches. head_norm: batch norm in its hidden layers
      (the authors' norm_in_head=bn), of the class tokens of equal crops, and of their patches,
      apart.
    class_weight, patch_weight, koleo_weight: of the terms; KoLeo's is 0.1 in DINOv2, of the
      student's class token in each global crop.
    teacher_temperature, patch_temperature: of the two terms, from teacher_temperature_start
      linearly over teacher_warmup_epochs, by epoch (iBOT) or, with temperature_per_step, by step
      (DINOv2).
    momentum: of the teacher at the first step, rising to 1 by a half cosine.
    centring: "centre", running means of the teacher's logits, of patches in all places or, with
      centre_hidden, in hidden ones (DINOv2); or "sinkhorn" (DINOv2's large runs).
    mask_shape: "blocks" of at least smallest_block patches, or "random" patches. Each global crop
      of each example has a mask of its own with mask_probability, of a share uniform in mask_ratio.
    smallest_block: None is iBOT's, 16 of 14x14 patches (see `views.masks.blocks`); 4 in DINOv2.

    The config's optimiser holds the last layer during the first epoch, as `dino`'s.

    Raises:
      ValueError: fewer than two views, num_global out of range, an encoder that is not a `vit` with
        a mask token, an unknown centring or mask shape.
    """
    transformer = _checked(encoder, views, num_global, centring, mask_shape)

    def head() -> weight_norm.DINOHead:
        return weight_norm.make(
            out_dim=num_prototypes,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            use_bn=head_norm,
            norm_last_layer=norm_last_layer,
            dtype=transformer.dtype,
            axis_name=run.axis_name,
        )

    network = Network(transformer, head(), None if shared_head else head())
    warmup = teacher_warmup_epochs * (run.steps_per_epoch if temperature_per_step else 1)
    hide = Masks(mask_shape, mask_probability, mask_ratio, smallest_block)
    temperatures = Temperatures(
        student=student_temperature,
        start=teacher_temperature_start,
        of_class=teacher_temperature,
        of_patch=patch_temperature,
        warmup=round(warmup),
        per_step=temperature_per_step,
    )
    balance = Balance(centring, centre_momentum, centre_hidden, sinkhorn_iterations)
    weights = Weights(class_weight, patch_weight, koleo_weight)
    chance = (class_weight + patch_weight * mask_probability) * math.log(num_prototypes)
    return from_loss(
        variables=functools.partial(_variables, network, views[0].clean, num_prototypes),
        views=lambda batch, key: draw(views, batch, key),
        forward=functools.partial(_forward, network, hide, num_global),
        loss=functools.partial(_loss, run, weights, temperatures, balance, chance),
        tx=tx,
        features=functools.partial(_features, network),
        clean=views[0].clean,
        axis_name=run.axis_name,
        **fields(views),
        ema=ema_of_params(
            optim.linspace_warmup_cosine(base=momentum, final=1.0, total_steps=run.total_steps)
        ),
        evaluated=lambda state: (state.target.params, state.target.stats),
    )


def _checked(
    encoder: nn.Module, views: Sequence[View], num_global: int, centring: str, mask_shape: str
) -> ViT:
    """The encoder, if all settings are ones that `make` takes."""
    if len(views) < 2 or not 1 <= num_global <= len(views):
        raise ValueError(
            f"iBOT needs two views or more and num_global of 1 to all of them; got {len(views)} "
            f"views and num_global={num_global}."
        )
    if not isinstance(encoder, ViT) or not encoder.mask_token:
        raise ValueError(
            "iBOT hides patches of a transformer; set encoder.name=vit and encoder.mask_token=True."
        )
    if centring not in ("centre", "sinkhorn"):
        raise ValueError(f'centring is {centring!r}; expected "centre" or "sinkhorn".')
    if mask_shape not in ("blocks", "random"):
        raise ValueError(f'mask_shape is {mask_shape!r}; expected "blocks" or "random".')
    return encoder


def _variables(
    network: Network,
    clean: Callable[[Batch], Any],
    num_prototypes: int,
    key: jax.Array,
    batch: Batch,
) -> Variables:
    start = network.init(key, clean(batch), True, patches=True)
    params, stats = start["params"], start.get("batch_stats", {})
    memory = {
        "centre": centres.init(num_prototypes),
        "patch_centre": centres.init(num_prototypes),
        "step": jnp.zeros((), jnp.int32),
    }
    return Variables(params, stats, (params, stats), memory)


def _features(
    network: Network, params: Any, stats: Any, images: jax.Array, train: bool
) -> tuple[dict[str, jax.Array], Any]:
    found, stats = applier(network)(params, stats, images, train)
    return {"h": found["h"], "blocks": found["blocks"]}, stats


def _hidden(hide: Masks, keys: jax.Array, rows: int, columns: int) -> jax.Array:
    """[B, rows * columns] of one global crop, by the keys of that view."""
    counts_key, places_key = view_keys(keys, 0), view_keys(keys, 1)
    counts = masks.counts(
        counts_key, rows * columns, probability=hide.probability, ratio=hide.ratio
    )
    if hide.shape == "random":
        return masks.scattered(places_key, rows * columns, counts)
    drawn = masks.blocks(places_key, rows, columns, counts, smallest=hide.smallest)
    return drawn.reshape(-1, rows * columns)


def _by_example(
    network: Network, params: Any, stats: Any, crops: Sequence[jax.Array], **options: Any
) -> tuple[dict[str, jax.Array], Any]:
    """The network on V crops of one size in training: {name: [B, V, ...]}, and its statistics."""
    found, changed = network.apply(
        {"params": params, "batch_stats": stats},
        jnp.concatenate(crops),
        True,
        mutable=["batch_stats"],
        **options,
    )
    by_example = {
        name: jnp.stack(jnp.split(value, len(crops)), axis=1)
        for name, value in found.items()
        if value is not None
    }
    return by_example, changed.get("batch_stats", stats)


def _forward(
    network: Network,
    hide: Masks,
    num_global: int,
    params: Any,
    stats: Any,
    target: Any,
    inputs: Any,
    batch: Batch,
    key: jax.Array,
) -> tuple[Any, Any, Any]:
    examples = example_keys(key, batch["id"])
    keys = [view_keys(examples, OWN + v) for v in range(len(inputs))]
    rows, columns = (side // network.encoder.patch for side in inputs[0].shape[1:3])
    hidden = [_hidden(hide, view_keys(keys[v], MASK), rows, columns) for v in range(num_global)]

    def student_of(
        stats: Any, first: int, last: int, **options: Any
    ) -> tuple[dict[str, jax.Array], Any]:
        drop_keys = None
        if network.encoder.drop_path > 0:
            drop_keys = jnp.concatenate([view_keys(keys[v], DROP) for v in range(first, last)])
        crops = inputs[first:last]
        return _by_example(network, params, stats, crops, drop_keys=drop_keys, **options)

    student, stats = student_of(stats, 0, num_global, mask=jnp.concatenate(hidden), patches=True)
    teacher, target_stats = lax.stop_gradient(
        _by_example(network, target.params, target.stats, inputs[:num_global], patches=True)
    )
    cls = [student["cls"]]
    for first, last in runs(inputs, num_global):
        local, stats = student_of(stats, first, last)
        cls.append(local["cls"])
    outputs = {
        "student": jnp.concatenate(cls, axis=1),
        "student_patches": student["patches"],
        "teacher": teacher["cls"],
        "teacher_patches": teacher["patches"],
        "mask": jnp.float32(jnp.stack(hidden, axis=1)),
        "h": student["h"],
    }
    return outputs, stats, target_stats


def _loss(
    run: Run,
    weights: Weights,
    temperatures: Temperatures,
    balance: Balance,
    chance: float,
    outputs: Any,
    params: Any,
    memory: Any,
    batch: Batch,
    key: jax.Array,
) -> tuple[jax.Array, Aux]:
    by_view = {name: outputs[name].swapaxes(0, 1) for name in BY_VIEW}  # [V, B, ...]
    mask = by_view["mask"]
    class_term, patch_term = _distilled(run, temperatures, balance, by_view, memory)
    value = weights.of_class * class_term + weights.of_patch * patch_term
    metrics = {
        "class_loss": class_term,
        "patch_loss": patch_term,
        "hidden": total(jnp.sum(mask), run.axis_name)
        / (run.batch_size * mask.shape[0] * mask.shape[2]),
        "chance": jnp.float32(chance),
    }
    if weights.koleo > 0:
        count = outputs["h"].shape[1]
        spread = sum(
            losses.spread.koleo(outputs["h"][:, v], axis_name=run.axis_name) for v in range(count)
        )
        value = value + weights.koleo * spread
        metrics["koleo"] = spread / count
    return value, Aux(metrics, _moved(run, balance, by_view, memory))


def _distilled(
    run: Run,
    temperatures: Temperatures,
    balance: Balance,
    by_view: dict[str, jax.Array],
    memory: Any,
) -> tuple[jax.Array, jax.Array]:
    """The loss of the class token and that of hidden patches, of outputs [V, B, ...]."""
    student, teacher, patches, teacher_patches, mask = (by_view[name] for name in BY_VIEW)
    clock = memory["step"] if temperatures.per_step else memory["step"] // run.steps_per_epoch
    of_class, of_patch = (
        losses.no_negatives.teacher_temperature(
            clock, start=temperatures.start, final=final, warmup_epochs=temperatures.warmup
        )
        for final in (temperatures.of_class, temperatures.of_patch)
    )
    if balance.centring == "centre":
        class_term = losses.dino(
            student,
            teacher,
            memory["centre"],
            student_temperature=temperatures.student,
            teacher_temperature=of_class,
            axis_name=run.axis_name,
        )
        patch_term = losses.masked.ibot_patches(
            patches,
            teacher_patches,
            mask,
            memory["patch_centre"],
            student_temperature=temperatures.student,
            teacher_temperature=of_patch,
            axis_name=run.axis_name,
        )
        return class_term, patch_term

    class_term = losses.swav(
        student,
        _codes(run, balance, teacher, of_class, None),
        temperature=temperatures.student,
        axis_name=run.axis_name,
    )
    patch_term = losses.masked.patch_distillation(
        patches,
        _codes(run, balance, teacher_patches, of_patch, mask.reshape(-1) > 0),
        mask,
        student_temperature=temperatures.student,
        axis_name=run.axis_name,
    )
    return class_term, patch_term


def _codes(
    run: Run,
    balance: Balance,
    logits: jax.Array,
    epsilon: jax.Array,
    valid: jax.Array | None,
) -> jax.Array:
    """The teacher's distribution [..., K], balanced by Sinkhorn over all `valid` rows."""
    rows = losses.assignments.sinkhorn(
        logits.reshape(-1, logits.shape[-1]),
        epsilon=epsilon,
        iterations=balance.iterations,
        valid=valid,
        axis_name=run.axis_name,
    )
    if valid is not None:  # they are NaN where no patch of the global batch is hidden
        rows = jnp.where(valid[:, None], rows, 0.0)
    return rows.reshape(logits.shape)


def _moved(run: Run, balance: Balance, by_view: dict[str, jax.Array], memory: Any) -> Any:
    """The memory after the step: both centres, and the step's number."""
    return {
        "centre": centres.update(
            memory["centre"],
            by_view["teacher"],
            momentum=balance.momentum,
            axis_name=run.axis_name,
        ),
        "patch_centre": centres.update(
            memory["patch_centre"],
            by_view["teacher_patches"],
            momentum=balance.momentum,
            where=by_view["mask"] if balance.hidden else None,
            axis_name=run.axis_name,
        ),
        "step": memory["step"] + 1,
    }


def runs(inputs: Sequence[jax.Array], first: int) -> list[tuple[int, int]]:
    """(first, last + 1) of runs of consecutive views of equal size, from view `first` on."""
    found: list[tuple[int, int]] = []
    for index in range(first, len(inputs)):
        if found and inputs[index].shape == inputs[index - 1].shape:
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return found
