"""The heads of an actor-critic: a policy's logits and a value."""

import flax.linen as nn
import jax


class ActorCritic(nn.Module):
    """h [..., D] to (logits [..., actions], value [...]).

    The policy starts from zero weights: every action is equally likely, whatever is observed.
    """

    actions: int

    @nn.compact
    def __call__(self, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = nn.Dense(self.actions, kernel_init=nn.initializers.zeros, name="policy")(h)
        return logits, nn.Dense(1, name="value")(h)[..., 0]
