"""ContraGAN (Kang and Park, NeurIPS 2020, arXiv 2006.12681): a generator and a discriminator that
contrasts images with each other and with class proxies."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax.core.clocks import Count, Steps
from cl_jax.core.ema import ema_of_params
from cl_jax.core.keys import example_keys, view_keys
from cl_jax.core.method import Batch, Method, Run, State, Target, Tree, advance, gradient
from cl_jax.losses.generation import hinge_discriminator, hinge_generator, two_c

PLAYERS = ("generator", "discriminator")


class Contrast(NamedTuple):
    """Settings of the losses."""

    weight: float
    temperature: float
    positives: str
    axis_name: str | None

    def __call__(self, z: jax.Array, proxies: jax.Array, labels: jax.Array) -> jax.Array:
        return two_c(
            z,
            proxies,
            labels,
            temperature=self.temperature,
            positives=self.positives,
            axis_name=self.axis_name,
        )


class Networks(NamedTuple):
    """The two players, called as pure functions that return new statistics too."""

    generator: nn.Module
    discriminator: nn.Module
    noise_dim: int
    num_classes: int

    def make(self, params: Tree, stats: Tree, noise: Any, train: bool) -> tuple[jax.Array, Tree]:
        return _apply(self.generator, params, stats, *noise, train=train)

    def judge(
        self, params: Tree, stats: Tree, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Tree]:
        return _apply(self.discriminator, params, stats, images, train=train)

    def draw(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(noise [B, Z], labels [B]), one of each by each key."""

        def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            noise, label = jax.random.split(key)
            return (
                jax.random.normal(noise, (self.noise_dim,), jnp.float32),
                jax.random.randint(label, (), 0, self.num_classes),
            )

        return jax.vmap(one)(keys)


def make(
    *,
    encoder: Mapping[str, nn.Module],
    tx: optax.GradientTransformation,
    views: Sequence[Any],
    run: Run,
    discriminator_steps: Count = 5,
    weight: float = 1.0,
    temperature: float = 1.0,
    positives: Literal["class", "proxy"] = "class",
    flip: float = 0.5,
    ema: float = 0.9999,
    ema_start: Steps = 1000,
    truncation: float = 0.0,
    label: str = "label",
) -> Method:
    """ContraGAN.

    One step is `discriminator_steps` updates of the discriminator, each on its part of the batch
    and as many generated images, then one of the generator on generated images of a part's number.
    Part p is rows p, p + n, ... of each device, so that parts do not depend on the devices.

    Args:
      encoder: {"generator": ..., "discriminator": ...}, `encoders.biggan` or modules called alike.
      tx: one optimiser for both, each with its own state; its learning rate is a function of the
        run's steps in both.
      weight, temperature, positives: of the 2C loss (`losses.generation.two_c`). With
        positives="class", the paper's, a generator of few classes may mix up their names.
      flip: probability that a real image is mirrored.
      ema, ema_start: momentum of the generator that `generate` uses, and the step at which its
        average begins; before it, the average is the trained generator. Its batch norm has
        statistics of its own.
      truncation: above 0, `generate` draws noise within plus and minus this number.
      label: the class that the generator is given.

    Images without a label (-1) are real images like the others, and negatives of the 2C loss, which
    pulls them to nothing.

    `functions["generate"]`: {"image": uint8 [B, H, W, C], "label": [B]} for the batch's labels,
    from noise by its ids; a row without a label has a class drawn by its id.

    Raises:
      ValueError: a player that is missing, a batch that `discriminator_steps` does not divide,
        views, settings out of range, data without a labelled image.
    """
    _check(encoder, views, run, discriminator_steps, flip, ema, truncation, label)
    axis_name = run.axis_name
    networks = Networks(
        generator=encoder["generator"],
        discriminator=encoder["discriminator"],
        noise_dim=encoder["generator"].noise_dim,
        num_classes=run.sizes[label],
    )
    contrast = Contrast(weight, temperature, positives, axis_name)
    mover = ema_of_params(lambda count: jnp.where(count < ema_start, 0.0, ema))
    slow = per_step(tx, discriminator_steps)

    def init(key: jax.Array, batch: Batch) -> State:
        keys = jax.random.split(key, 3)
        noise = networks.draw(jax.random.split(keys[2], batch["id"].shape[0]))
        fake, generator = networks.generator.init_with_output(keys[0], *noise, train=True)
        discriminator = networks.discriminator.init(keys[1], _same(fake, _real(batch)), train=True)
        params = {"generator": generator["params"], "discriminator": discriminator["params"]}
        stats = {
            "generator": generator.get("batch_stats", {}),
            "discriminator": discriminator.get("batch_stats", {}),
        }
        opt = {
            "generator": tx.init({"generator": params["generator"]}),
            "discriminator": slow.init({"discriminator": params["discriminator"]}),
        }
        target = Target(mover.init(params["generator"]), stats["generator"])
        return State(jnp.zeros((), jnp.int32), params, opt, stats, target)

    def update(state: State, batch: Batch, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        pieces = _cut(batch, discriminator_steps)
        params, stats, opt = dict(state.params), dict(state.stats), dict(state.opt)
        for number, piece in enumerate(pieces):
            keys = example_keys(key, piece["id"])
            with jax.named_scope("discriminator"):
                noise = networks.draw(view_keys(keys, number))
                real = _mirror(_real(piece), view_keys(keys, discriminator_steps + 1), flip)
                fake, stats["generator"] = networks.make(
                    params["generator"], stats["generator"], noise, True
                )
                objective = _discriminator_loss(
                    networks, contrast, stats["discriminator"], real, fake, piece[label]
                )
                (value, (judged, stats["discriminator"])), grads = gradient(
                    objective, params["discriminator"], axis_name
                )
                params["discriminator"], opt["discriminator"] = _advance(
                    slow, "discriminator", grads, opt, params
                )
        with jax.named_scope("generator"):
            noise = networks.draw(view_keys(keys, discriminator_steps))
            made = _generator_loss(networks, contrast, params["discriminator"], stats, noise)
            (g_value, (g_judged, new)), g_grads = gradient(made, params["generator"], axis_name)
            stats = new
            params["generator"], opt["generator"] = _advance(tx, "generator", g_grads, opt, params)
        with jax.named_scope("target"):
            moved = mover.update(params["generator"], state.target.ema)[1]
            _, target_stats = networks.make(moved.ema, state.target.stats, noise, True)
        norms = optax.global_norm(grads), optax.global_norm(g_grads)
        metrics = {
            "loss": value + g_value,
            "grad_norm": jnp.hypot(*norms),
            "discriminator_loss": value,
            "generator_loss": g_value,
            **judged,
            **g_judged,
        }
        if axis_name is not None:
            metrics = lax.pmean(metrics, axis_name)
        target = Target(moved, target_stats)
        return State(state.step + 1, params, opt, stats, target), metrics

    def features(
        params: Tree, stats: Tree, inputs: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Tree]:
        judged, changed = networks.judge(
            params["discriminator"], stats["discriminator"], inputs, train
        )
        return {name: judged[name] for name in ("h", "z")}, stats | {"discriminator": changed}

    def encode(state: State, batch: Batch) -> dict[str, jax.Array]:
        return features(state.params, state.stats, _real(batch), False)[0]

    def generate(state: State, batch: Batch) -> dict[str, jax.Array]:
        noise = _test_noise(batch["id"], networks.noise_dim, truncation)
        _, drawn = networks.draw(example_keys(jax.random.key(1), batch["id"]))
        # An embedding takes -1 for its last row.
        labels = jnp.where(batch[label] < 0, drawn, batch[label])
        image, _ = networks.make(state.target.params, state.target.stats, (noise, labels), False)
        return {"image": jnp.round(127.5 * (image + 1)).astype(jnp.uint8), "label": labels}

    return Method(
        init=init,
        update=update,
        functions={"encode": encode, "generate": generate},
        needs=("image", label),
        features=features,
        clean=_real,
    )


def per_step(tx: optax.GradientTransformation, updates: int) -> optax.GradientTransformation:
    """An optimiser whose schedules count every `updates`-th update: those of a player that moves so
    often in one step of the run. What is not a schedule (Adam's bias correction) counts them
    all."""

    def init(params: Tree) -> tuple[jax.Array, Tree]:
        return jnp.zeros((), jnp.int32), tx.init(params)

    def update(gradients: Tree, state: Any, params: Tree = None) -> tuple[Tree, Any]:
        done, inner = state
        moved, inner = tx.update(gradients, inner, params)
        done = done + 1

        def counted(x: Any) -> Any:
            return x._replace(count=done // updates) if _is_schedule(x) else x

        return moved, (done, jax.tree.map(counted, inner, is_leaf=_is_schedule))

    return optax.GradientTransformation(init, update)


def _is_schedule(x: Any) -> bool:
    return isinstance(x, optax.ScaleByScheduleState)


def _discriminator_loss(
    networks: Networks,
    contrast: Contrast,
    stats: Tree,
    real: jax.Array,
    fake: jax.Array,
    labels: jax.Array,
) -> Any:
    """params -> (hinge + weight * 2C of the real images, (metrics, new statistics)). Real and
    generated images are one call: one power iteration of the spectral norms."""
    rows = real.shape[0]
    fake = lax.stop_gradient(fake)

    def objective(params: Tree) -> tuple[jax.Array, Any]:
        judged, changed = networks.judge(params, stats, jnp.concatenate([real, fake]), True)
        scores, z = judged["score"], judged["z"][:rows]
        pull = contrast(z, params["proxies"], labels)
        value = hinge_discriminator(scores[:rows], scores[rows:], axis_name=contrast.axis_name)
        metrics = {
            "contrast_real": pull,
            "score_real": scores[:rows].mean(),
            "score_generated": scores[rows:].mean(),
        }
        return value + contrast.weight * pull, (metrics, changed)

    return objective


def _generator_loss(
    networks: Networks, contrast: Contrast, discriminator: Tree, stats: Tree, noise: Any
) -> Any:
    """params -> (-score + weight * 2C of the generated images, (metrics, new statistics)). The
    discriminator and its proxies take no gradient."""

    def objective(params: Tree) -> tuple[jax.Array, Any]:
        fake, made = networks.make(params, stats["generator"], noise, True)
        judged, seen = networks.judge(discriminator, stats["discriminator"], fake, True)
        pull = contrast(judged["z"], discriminator["proxies"], noise[1])
        value = hinge_generator(judged["score"], axis_name=contrast.axis_name)
        new = {"generator": made, "discriminator": seen}
        return value + contrast.weight * pull, ({"contrast_generated": pull}, new)

    return objective


def _advance(
    tx: optax.GradientTransformation, player: str, grads: Tree, opt: Tree, params: Tree
) -> tuple[Tree, Tree]:
    """(params, optimiser's state) of one player, which the optimiser sees under its name."""
    moved, state = advance(tx, {player: grads}, opt[player], {player: params[player]})
    return moved[player], state


def _apply(
    module: nn.Module, params: Tree, stats: Tree, *args: Any, train: bool
) -> tuple[Any, Tree]:
    variables = {"params": params, "batch_stats": stats}
    if not train:
        return module.apply(variables, *args, train=False), stats
    out, changed = module.apply(variables, *args, train=True, mutable=["batch_stats"])
    return out, changed.get("batch_stats", stats)


def _real(batch: Batch) -> jax.Array:
    """Real images between -1 and 1."""
    return batch["image"].astype(jnp.float32) / 127.5 - 1


def _mirror(images: jax.Array, keys: jax.Array, probability: float) -> jax.Array:
    if not probability:
        return images
    flipped = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def _cut(batch: Batch, count: int) -> list[Batch]:
    """Part p is rows p, p + count, ...: the same examples on any number of devices."""
    rows = batch["id"].shape[0]
    if rows % count:
        raise ValueError(
            f"a device's batch of {rows} is not divisible by discriminator_steps={count}; use "
            "another batch_size, or fewer devices."
        )
    return [{name: x[p::count] for name, x in batch.items()} for p in range(count)]


def _test_noise(ids: jax.Array, size: int, truncation: float) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        if truncation:
            return jax.random.truncated_normal(key, -truncation, truncation, (size,), jnp.float32)
        return jax.random.normal(key, (size,), jnp.float32)

    return jax.vmap(one)(example_keys(jax.random.key(0), ids))


def _same(fake: jax.Array, real: jax.Array) -> jax.Array:
    if fake.shape != real.shape:
        raise ValueError(
            f"the generator makes images {list(fake.shape[1:])}, the data have "
            f"{list(real.shape[1:])}; change the generator's bottom, widths or channels."
        )
    return real


def _check(
    encoder: Any,
    views: Sequence[Any],
    run: Run,
    steps: int,
    flip: float,
    ema: float,
    truncation: float,
    label: str,
) -> None:
    missing = [p for p in PLAYERS if not isinstance(encoder, Mapping) or p not in encoder]
    if missing:
        raise ValueError(
            f"ContraGAN has two players; config.encoder has no section {missing[0]!r}. Expected "
            "encoder=dict(generator=dict(name=...), discriminator=dict(name=...))."
        )
    if views:
        raise ValueError(
            f"ContraGAN draws no views of images but a mirror image (`flip`); the config has "
            f"{len(views)}. Set config.views to an empty section."
        )
    if label not in run.sizes:
        known = ", ".join(sorted(run.sizes)) or "none"
        raise ValueError(f"the generator is given the label {label!r}; the data have: {known}.")
    if run.labels is not None and not (run.labels(label) >= 0).any():
        raise ValueError(
            f"no training image has a {label} (all are -1), and the generator makes images of "
            "given classes. Give labels, or name another label of the data in method.label."
        )
    if steps < 1 or run.batch_size % steps:
        raise ValueError(
            f"batch_size={run.batch_size} and discriminator_steps={steps}; expected at least one "
            f"step and a batch that it divides, for instance {max(steps, 1) * 64}."
        )
    if not (0 <= flip <= 1 and 0 <= ema < 1 and truncation >= 0):
        raise ValueError(
            f"flip={flip}, ema={ema}, truncation={truncation}; expected a probability, a momentum "
            "from 0 to below 1, and 0 (none) or a positive bound."
        )
