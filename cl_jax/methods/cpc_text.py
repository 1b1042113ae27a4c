"""CPC on text (van den Oord et al. 2018, arXiv 1807.03748, section 3.3).

Each sentence of a passage becomes a latent, a recurrent network sums up those so far, and its state
must pick out the latents of the next sentences among all of the batch.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import optax

from cl_jax.core.clocks import Count
from cl_jax.core.method import Method, Run
from cl_jax.methods.cpc_audio import over_sequences
from cl_jax.views import View

ROLES = ("sentence", "context")


def make(
    *,
    encoder: Mapping[str, nn.Module],
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    steps: Count = 3,
    scale: float = 1.0,
    common_window: bool = True,
    exclude_own: bool = False,
    block_size: int | None = None,
    micro_batches: int = 1,
) -> Method:
    """CPC on passages.

    encoder: {"sentence": tokens [B, n, T] to latents [B, n, D], "context": latents to contexts}.
    views: one, the passage.
    steps: how many sentences ahead are predicted; 3 in the paper.

    The others, the features and the function "steps": as in `methods.cpc_audio`.

    Raises:
      ValueError: other encoders than `sentence` and `context`.
    """
    if not isinstance(encoder, Mapping) or set(encoder) != set(ROLES):
        raise ValueError(
            "config.encoder must have the sections sentence and context, for instance "
            "sentence=dict(name='sentences'), context=dict(name='gru')."
        )
    return over_sequences(
        encoder["sentence"],
        encoder["context"],
        tx=tx,
        views=views,
        run=run,
        steps=steps,
        scale=scale,
        common_window=common_window,
        exclude_own=exclude_own,
        block_size=block_size,
        micro_batches=micro_batches,
    )
