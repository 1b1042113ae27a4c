"""From uint8 images and one key per example to views, on the device.

>>> keys = example_keys(jax.random.fold_in(key, step), ids)
>>> a, b = augment([of_section("simclr_cifar")] * 2, keys, images)

A view is a function of (recipe, example's key, view number, image) alone.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.core.keys import uniforms
from cl_jax.core.names import nearest
from cl_jax.views import blur as gaussian
from cl_jax.views import colour, crop, lab, planes, presets
from cl_jax.views.presets import Recipe


class Draw(NamedTuple):
    """Everything random about one view: the box (top, left, height, width), what is applied, and
    with what numbers; `turns` is a number of quarter turns, None in a recipe without them."""

    box: jax.Array
    flip: jax.Array
    jitter: jax.Array
    order: jax.Array
    factors: jax.Array
    gray: jax.Array
    blur: jax.Array
    sigma: jax.Array
    solarize: jax.Array
    turns: jax.Array | None = None


_TURNS = (1 << 20) + 1  # folded into a view's key: no number that `split` makes of it


def of_section(section: str | Mapping[str, Any]) -> Recipe:
    """A recipe from a preset's name, or from a config section of plain values.

    In a section, "name" is the preset (`presets.py`; without one, Recipe's defaults), keys that the
    preset's function takes go to it, and the others replace fields of the result: {"name":
    "simclr", "size": 96, "strength": 0.5, "gray": 0.1}. Lists become tuples.

    Raises:
      ValueError: an unknown preset or key, with the nearest known name.
    """
    fields = {"name": section} if isinstance(section, str) else dict(section.items())
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    name = fields.pop("name", None)
    preset: Callable[..., Recipe] = Recipe
    if name is not None:
        functions = {
            key: f for key, f in inspect.getmembers(presets, inspect.isfunction) if key[0] != "_"
        }
        if name not in functions:
            raise ValueError(
                f"recipe {name!r} is not known{nearest(name, functions)}. "
                f"Known: {', '.join(functions)}."
            )
        preset = functions[name]
    takes = set(inspect.signature(preset).parameters)
    known = {field.name for field in dataclasses.fields(Recipe)}
    for key in fields:
        if key not in known | takes:
            raise ValueError(
                f"recipe {name or 'Recipe'} has no field {key!r}{nearest(key, known | takes)}."
            )
    recipe = preset(**{key: value for key, value in fields.items() if key in takes})
    rest: dict[str, Any] = {key: value for key, value in fields.items() if key not in takes}
    return dataclasses.replace(recipe, **rest)


def draw(recipe: Recipe, key: jax.Array, height: int, width: int) -> Draw:
    """All random numbers of one view of an image of that size."""
    crop_key, jitter_key, rest_key = jax.random.split(key, 3)
    if recipe.crop == "tv":
        box = crop.draw_tv_box(crop_key, height, width, scale=recipe.scale, ratio=recipe.ratio)
    elif recipe.crop == "tf":
        box = crop.draw_tf_box(crop_key, height, width, scale=recipe.scale, ratio=recipe.ratio)
    elif recipe.crop == "byol":
        box = crop.draw_byol_box(crop_key, height, width, scale=recipe.scale, ratio=recipe.ratio)
    else:
        box = jnp.array([0, 0, height, width], jnp.int32)
    jitter = colour.draw_jitter(
        jitter_key,
        brightness=recipe.brightness,
        contrast=recipe.contrast,
        hue=recipe.hue,
        saturation=recipe.saturation,
        additive=recipe.additive_brightness,
    )
    u = uniforms(rest_key, 6)
    low, high = recipe.blur_sigma
    return Draw(
        box,
        u[0] < recipe.flip,
        u[1] < recipe.jitter,
        *jitter,
        u[2] < recipe.gray,
        u[3] < recipe.blur,
        low + (high - low) * u[4],
        u[5] < recipe.solarize,
        jax.random.randint(jax.random.fold_in(key, _TURNS), (), 0, 4)
        if recipe.quarter_turns
        else None,
    )


def transform(recipe: Recipe, drawn: Draw, x: jax.Array) -> jax.Array:
    """The deterministic part: one image's planes [C, H, W] in [0, 1] -> the view's planes [C, size,
    size]."""
    # PIL clips a cubic's overshoot in both passes, BYOL clips the crop; in SimCLR it continues into
    # the jitter.
    x = crop.resized_crop(
        x,
        drawn.box,
        recipe.size,
        interpolation=recipe.resampling,
        clip=recipe.family == "tv" and recipe.interpolation == "bicubic",
    )
    x = planes.clip(x) if recipe.crop == "byol" else x
    weights = colour.LUMA_TENSOR if recipe.family == "tf" else colour.LUMA_PIL
    strengths = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    operators = [operator for operator, strength in enumerate(strengths) if strength > 0]
    for operator in recipe.order:
        if getattr(recipe, operator) == 0:
            continue
        if operator == "flip":
            x = planes.flip(x, drawn.flip)
        elif operator == "jitter":
            x = colour.jitter(
                x,
                colour.Jitter(drawn.order, drawn.factors),
                family=recipe.family,
                additive=recipe.additive_brightness,
                luma_weights=weights,
                operators=operators,
                apply=drawn.jitter,
            )
        elif operator == "gray":
            x = colour.grayscale(x, weights, drawn.gray)
        elif operator == "blur":
            x = gaussian.blur(
                planes.clip(x),
                drawn.sigma,
                radius=recipe.radius,
                padding=recipe.padding,
                apply=drawn.blur,
            )
        else:
            x = planes.solarize(x, recipe.solarize_threshold, drawn.solarize)
    if recipe.quarter_turns:
        x = planes.turn(x, drawn.turns)
    return _finish(recipe, planes.clip(x))


def _finish(recipe: Recipe, x: jax.Array) -> jax.Array:
    x = lab.convert(x, recipe.colour_space)
    return (
        x
        if recipe.mean is None or recipe.std is None
        else planes.normalise(x, recipe.mean, recipe.std)
    )


def apply(recipe: Recipe, keys: jax.Array, images: jax.Array) -> jax.Array:
    """One view of each image.

    Args:
      recipe: what to do.
      keys: [B] typed keys, one per example: `example_keys`.
      images: [B, H, W, C] uint8.

    Returns:
      [B, size, size, C] float32, in [0, 1] where the recipe does not normalise.

    Raises:
      ValueError: no Recipe, other shapes or dtypes; channels for which the recipe's operators are
        undefined.
    """
    _check_recipe(recipe)
    _check_images(images)
    _check_keys(keys, images)

    def view(key, pixels):
        drawn = draw(recipe, key, *pixels.shape[:2])
        return planes.pixels(transform(recipe, drawn, planes.planes(pixels)))

    return jax.vmap(view)(keys, images)


def augment(recipes: Sequence[Recipe], keys: jax.Array, images: jax.Array) -> list[jax.Array]:
    """One view per recipe, in their order: view v of an example uses `fold_in(its key, v)`.

    Equal recipes are independent views and share one program; recipes of several sizes are
    multi-crop.

    Args:
      recipes: two of one kind for a SimCLR pair, two kinds for BYOL's, `multicrop.swav()` for
        SwAV's.
      keys, images: as in `apply`.

    Returns:
      list of [B, size, size, C], one per recipe.

    Raises:
      ValueError: as `apply`.
    """
    _check_images(images)
    _check_keys(keys, images)
    places: dict[Recipe, list[int]] = {}
    for number, recipe in enumerate(recipes):
        places.setdefault(recipe, []).append(number)
    views: dict[int, jax.Array] = {}
    for recipe, numbers in places.items():
        folded = jax.vmap(lambda n: jax.vmap(lambda k: jax.random.fold_in(k, n))(keys))(
            jnp.array(numbers, jnp.uint32)
        )
        stacked = jax.vmap(lambda k: apply(recipe, k, images))(folded)
        views.update({number: stacked[row] for row, number in enumerate(numbers)})
    return [views[number] for number in range(len(recipes))]


def evaluate(recipe: Recipe, images: jax.Array) -> jax.Array:
    """The clean test images of a recipe: central crop and resize of the system's own kind, colour
    space, normalisation.

    "tv": the shorter side to size / test_crop, then the central square. "tf": the central square of
    test_crop of the shorter side, then the resize. Images that have the size already and a
    test_crop of 1 are not resampled.

    Args:
      images: [B, H, W, C] uint8.

    Returns:
      [B, size, size, C] float32.

    Raises:
      ValueError: as `apply`.
    """
    _check_recipe(recipe)
    _check_images(images)
    _, height, width, _ = images.shape
    size = recipe.size

    def clean(pixels):
        x = planes.planes(pixels)
        if recipe.test_crop == 1 and height == width == size:
            return planes.pixels(_finish(recipe, x))
        if recipe.family == "tv":
            x = crop.resize_centre_crop(
                x,
                round(size / recipe.test_crop),
                size,
                interpolation=recipe.resampling,
                clip=recipe.interpolation == "bicubic",
            )
        else:
            of = crop.byol_centre_box if recipe.crop == "byol" else crop.centre_box
            x = crop.resized_crop(
                x, of(height, width, recipe.test_crop), size, interpolation=recipe.resampling
            )
        return planes.pixels(_finish(recipe, planes.clip(x)))

    return jax.vmap(clean)(images)


def _check_recipe(recipe: Recipe) -> None:
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"the recipe is {recipe!r}; expected a Recipe, such as views.presets.simclr_cifar() or "
            "the `recipe` of a view."
        )


def _check_images(images: jax.Array) -> None:
    given = f"{images.dtype}{list(images.shape)}" if hasattr(images, "dtype") else type(images)
    if not hasattr(images, "dtype") or images.ndim != 4 or images.dtype != jnp.uint8:
        raise ValueError(
            f"images are {given}; expected uint8 [B, H, W, C]. Leave the division by 255 to the "
            "views; grey images need a channel axis, images[..., None]."
        )


def _check_keys(keys: jax.Array, images: jax.Array) -> None:
    if (
        not jax.dtypes.issubdtype(getattr(keys, "dtype", None), jax.dtypes.prng_key)
        or keys.shape != images.shape[:1]
    ):
        raise ValueError(
            f"keys are {jax.typeof(keys)} for {images.shape[0]} images; expected one typed key per "
            "example, as example_keys(key, ids) makes them."
        )
