"""i-Mix (Lee et al. 2021, arXiv 2010.08887): MixUp of the queries' inputs, and of their virtual
labels, over any contrastive method.

Each example is its own class. A query of a mixed input belongs to the classes of both its parts, by
their shares; keys are never mixed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from cl_jax import losses
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Batch, Run
from cl_jax.core.parts import Pairs, Parts

MIXTURE = 11  # number of the mixture's key among those of a step's whole-batch draws


def make(*, base: Parts, run: Run, alpha: float = 1.0, kind: str = "mixup") -> Parts:
    """i-Mix over a base of in-batch negatives (SimCLR), of a queue (MoCo), or without negatives
    (BYOL). The loss has one direction, from the mixed first view to the clean second one.

    alpha: of the Beta distribution of the shares; 1 for images and speech, 2 for CovType.
    kind: "mixup", a weighted sum of inputs; "cutmix", a box of an image in another one; "none"
      mixes nothing, the same loss for comparison.

    Over a queue, the other keys of the batch are candidates beside it, since each is a class.

    Raises:
      ValueError: an unknown kind, alpha that is not above 0, a base with micro_batches; in a step,
        a base whose views are not arrays (graphs), or rows where a box is cut.
    """
    if kind not in ("mixup", "cutmix", "none"):
        raise ValueError(f"kind={kind!r}; expected mixup, cutmix or none.")
    if not alpha > 0:
        raise ValueError(f"alpha={alpha}; expected above 0, what a Beta distribution takes.")
    if base.rest.get("micro_batches", 1) > 1:
        raise ValueError(
            "i-Mix mixes examples of the whole batch; leave micro_batches of its base at 1."
        )
    axis_name = base.axis_name

    def mixture(key: jax.Array, rows: int, shape: tuple[int, ...]) -> losses.mixing.Mix:
        drawn = batch_key(key, MIXTURE)
        if kind == "none":
            whole = losses.mixing.draw_mixup(drawn, rows, alpha=1.0, axis_name=axis_name)
            return whole._replace(weight=jnp.ones_like(whole.weight))
        if kind == "mixup":
            return losses.mixing.draw_mixup(drawn, rows, alpha=alpha, axis_name=axis_name)
        return losses.mixing.draw_cutmix(drawn, rows, *shape[:2], alpha=alpha, axis_name=axis_name)

    def views(batch: Batch, key: jax.Array) -> list[Any]:
        first, *others = base.views(batch, key)
        _check(first, kind)
        mix = mixture(key, len(first), first.shape[1:])
        return [losses.mixing.mix_inputs(first, mix, axis_name=axis_name), *others]

    def contrast(
        found: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        q, k, negatives = found[0][:3]
        # The same key draws the same mixture; a box's share does not depend on the image's content.
        shape = jax.eval_shape(base.views, batch, key)[0].shape[1:]
        mix = mixture(key, len(q), shape)
        share = {"own_share": jnp.mean(mix.weight)}
        if base.temperature is None:
            return losses.mixing.imix_byol(q, k, mix, axis_name=axis_name), share
        candidates = run.batch_size + (0 if negatives is None else len(negatives))
        share["chance"] = jnp.log(jnp.float32(candidates))
        if negatives is None:
            value = losses.mixing.imix_n_pair(
                q, k, mix, temperature=base.temperature, axis_name=axis_name
            )
            return value, share
        value = losses.mixing.imix_moco(
            q, k, negatives, mix, temperature=base.temperature, axis_name=axis_name
        )
        return value, share

    return base._replace(views=views, contrast=contrast)


def _check(inputs: Any, kind: str) -> None:
    """Refuses inputs that are not mixed: those of several arrays, and rows where a box is cut."""
    if not isinstance(inputs, jax.Array):
        raise ValueError(
            f"i-Mix mixes views that are one array, and those of this base are "
            f"{type(inputs).__name__}; use a base of images, spectrograms or rows."
        )
    if kind == "cutmix" and inputs.ndim < 3:
        raise ValueError(
            f"the views have shape {inputs.shape}; a box is cut from [B, height, width, ...]. Use "
            "MixUp for rows."
        )
