"""iBOT (Zhou et al. 2021, arXiv 2111.07832), and DINOv2's recipe of it (Oquab et al. 2023, arXiv
2304.07193): DINO on the class token, and the same distillation at hidden patches.

The student sees global crops with some patches hidden, and small crops; its slow copy, the teacher,
sees the global crops whole. The student learns the teacher's distribution over prototypes, for the
class token of every other view and for each hidden patch of the same view. DINOv2 adds KoLeo, which
pushes the class tokens of a batch apart, and may balance the teacher by Sinkhorn in place of a
centre. Evaluations read the teacher."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax import losses
from cl_jax.core.ema import ema_of_params
from cl_jax.core.keys import example_keys, view_keys
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.parallel import total
from cl_jax.encoders.vit import ViT
from cl_jax.heads import weight_norm
from cl_jax.memory import centre as centres
from cl_jax.training import optim
from cl_jax.views import View, draw, fields, masks

OWN = 2**16  # with a view's number, folded into an example's key where a view folds in its number
MASK, DROP = 0, 1  # folded into that


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
    smallest_block: int = 4,
) -> Method:
    """iBOT.

    encoder: a `vit` with mask_token=True. views: the first `num_global` are the global crops, of
      one size.
    num_prototypes, hidden_dim, bottleneck_dim, norm_last_layer: of the head, as in `dino`.
      shared_head: one head for class token and patches.
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

    The config's optimiser holds the last layer during the first epoch, as `dino`'s.

    Raises:
      ValueError: fewer than two views, num_global out of range, an encoder that is not a `vit` with
        a mask token, an unknown centring or mask shape.
    """
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

    def head() -> weight_norm.DINOHead:
        return weight_norm.make(
            out_dim=num_prototypes,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            norm_last_layer=norm_last_layer,
            dtype=encoder.dtype,
            axis_name=run.axis_name,
        )

    network = Network(encoder, head(), None if shared_head else head())
    warmup = teacher_warmup_epochs * (run.steps_per_epoch if temperature_per_step else 1)

    def temperature(step: jax.Array, final: float) -> jax.Array:
        return losses.no_negatives.teacher_temperature(
            step if temperature_per_step else step // run.steps_per_epoch,
            start=teacher_temperature_start,
            final=final,
            warmup_epochs=round(warmup),
        )

    def masks_of(keys: jax.Array, rows: int, columns: int) -> jax.Array:
        """[B, rows * columns] of one global crop, by the keys of that view."""
        counts_key, places_key = view_keys(keys, 0), view_keys(keys, 1)
        counts = masks.counts(
            counts_key, rows * columns, probability=mask_probability, ratio=mask_ratio
        )
        if mask_shape == "random":
            return masks.scattered(places_key, rows * columns, counts)
        drawn = masks.blocks(places_key, rows, columns, counts, smallest=smallest_block)
        return drawn.reshape(-1, rows * columns)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        images = views[0].clean(batch)
        params = network.init(key, images, True, patches=True)["params"]
        memory = {
            "centre": centres.init(num_prototypes),
            "patch_centre": centres.init(num_prototypes),
            "step": jnp.zeros((), jnp.int32),
        }
        return Variables(params, {}, (params, {}), memory)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        examples = example_keys(key, batch["id"])
        keys = [view_keys(examples, OWN + v) for v in range(len(views))]
        rows, columns = (side // encoder.patch for side in inputs[0].shape[1:3])
        hidden = [masks_of(view_keys(keys[v], MASK), rows, columns) for v in range(num_global)]

        def crops(first: int, last: int, of: Any, **more: Any) -> dict[str, Any]:
            """The network on crops first to last of one size, by example."""
            drop_keys = None
            if encoder.drop_path > 0 and of is params:
                drop_keys = jnp.concatenate([view_keys(keys[v], DROP) for v in range(first, last)])
            found: Any = network.apply(
                {"params": of},
                jnp.concatenate(inputs[first:last]),
                True,
                drop_keys=drop_keys,
                **more,
            )
            return {
                name: jnp.stack(jnp.split(value, last - first), axis=1)
                for name, value in found.items()
                if value is not None
            }

        student = crops(0, num_global, params, mask=jnp.concatenate(hidden), patches=True)
        teacher = lax.stop_gradient(crops(0, num_global, target.params, patches=True))
        cls = [student["cls"]]
        for first, last in runs(inputs, num_global):
            cls.append(crops(first, last, params)["cls"])
        outputs = {
            "student": jnp.concatenate(cls, axis=1),
            "student_patches": student["patches"],
            "teacher": teacher["cls"],
            "teacher_patches": teacher["patches"],
            "mask": jnp.float32(jnp.stack(hidden, axis=1)),
            "h": student["h"],
        }
        return outputs, stats, {}

    def targets_by_sinkhorn(logits: jax.Array, temperature: jax.Array, valid: Any) -> jax.Array:
        codes = losses.assignments.sinkhorn(
            logits.reshape(-1, num_prototypes),
            epsilon=temperature,
            iterations=sinkhorn_iterations,
            valid=valid,
            axis_name=run.axis_name,
        )
        return codes.reshape(logits.shape)

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        student, teacher, patches, teacher_patches, mask = (
            outputs[name].swapaxes(0, 1)
            for name in ("student", "teacher", "student_patches", "teacher_patches", "mask")
        )
        of_class = temperature(memory["step"], teacher_temperature)
        of_patch = temperature(memory["step"], patch_temperature)
        if centring == "centre":
            class_term = losses.dino(
                student,
                teacher,
                memory["centre"],
                student_temperature=student_temperature,
                teacher_temperature=of_class,
                axis_name=run.axis_name,
            )
            patch_term = losses.masked.ibot_patches(
                patches,
                teacher_patches,
                mask,
                memory["patch_centre"],
                student_temperature=student_temperature,
                teacher_temperature=of_patch,
                axis_name=run.axis_name,
            )
        else:
            class_term = losses.swav(
                student,
                targets_by_sinkhorn(teacher, of_class, None),
                temperature=student_temperature,
                axis_name=run.axis_name,
            )
            patch_term = losses.masked.patch_distillation(
                patches,
                targets_by_sinkhorn(teacher_patches, of_patch, mask.reshape(-1) > 0),
                mask,
                student_temperature=student_temperature,
                axis_name=run.axis_name,
            )
        value = class_weight * class_term + patch_weight * patch_term
        metrics = {
            "class_loss": class_term,
            "patch_loss": patch_term,
            "hidden": total(jnp.sum(mask), run.axis_name)
            / (run.batch_size * mask.shape[0] * mask.shape[2]),
            "chance": jnp.float32(
                (class_weight + patch_weight * mask_probability) * math.log(num_prototypes)
            ),
        }
        if koleo_weight > 0:
            spread = sum(
                losses.spread.koleo(outputs["h"][:, v], axis_name=run.axis_name)
                for v in range(num_global)
            )
            value = value + koleo_weight * spread
            metrics["koleo"] = spread / num_global
        counted = mask if centre_hidden else jnp.ones_like(mask)
        weights = counted / jnp.maximum(total(jnp.sum(counted), run.axis_name), 1)
        mean = total(jnp.einsum("vbl,vblk->k", weights, teacher_patches), run.axis_name)
        moved = {
            "centre": centres.update(
                memory["centre"], teacher, momentum=centre_momentum, axis_name=run.axis_name
            ),
            "patch_centre": centres.update(
                memory["patch_centre"], mean[None], momentum=centre_momentum
            ),
            "step": memory["step"] + 1,
        }
        return value, Aux(metrics, moved)

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        found: Any = network.apply({"params": params}, images, train)
        return {"h": found["h"], "blocks": found["blocks"]}, stats

    return from_loss(
        variables=variables,
        views=lambda batch, key: draw(views, batch, key),
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        clean=views[0].clean,
        axis_name=run.axis_name,
        **fields(views),
        ema=ema_of_params(
            optim.linspace_warmup_cosine(base=momentum, final=1.0, total_steps=run.total_steps)
        ),
        evaluated=lambda state: (state.target.params, state.target.stats),
    )


def runs(inputs: Sequence[jax.Array], first: int) -> list[tuple[int, int]]:
    """(first, last + 1) of runs of consecutive views of equal size, from view `first` on."""
    found: list[tuple[int, int]] = []
    for index in range(first, len(inputs)):
        if found and inputs[index].shape == inputs[index - 1].shape:
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return found
