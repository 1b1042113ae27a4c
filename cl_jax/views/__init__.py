"""Views on the device: what is done to an example before the network sees it, keyed by its id.

`cl_jax/views/<kind>.py` has `make(**section) -> View` for each kind of data: image, tokens, audio,
graph, clip, streams. A section of `config.views` names its kind, "image" where it does not.
"""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from cl_jax.core.keys import example_keys, view_keys
from cl_jax.views import image, presets
from cl_jax.views.image import ImageView
from cl_jax.views.recipe import Recipe, apply, augment, evaluate

__all__ = [
    "ImageView",
    "Recipe",
    "View",
    "apply",
    "augment",
    "draw",
    "evaluate",
    "example_keys",
    "fields",
    "make",
]

Batch = Mapping[str, jax.Array]


class View(Protocol):
    """What is done to an example of one kind of data: a frozen, hashable record.

    needs: batch fields that it reads; wants: fields that it reads where they are there.
    draw:  (keys, batch) -> inputs, any pytree with examples first. `keys` are [B] typed keys, one
           for each example; row i of the result depends on row i of the batch and its key alone.
           Masks travel with the result.
    clean: batch -> inputs without augmentation: what evaluators and `init` show the network.
    """

    @property
    def needs(self) -> tuple[str, ...]: ...

    @property
    def wants(self) -> tuple[str, ...]: ...

    def draw(self, keys: jax.Array, batch: Batch) -> Any: ...

    def clean(self, batch: Batch) -> Any: ...


def make(section: Mapping[str, Any]) -> View:
    """The view that a config section describes: its "kind" names a module of this package or, with
    a dot, any module; the other keys are keywords of that module's `make`.

    Raises:
      ValueError: a section without keys; as the module's `make`.
    """
    if not hasattr(section, "keys"):
        raise ValueError(
            f"the section of a view is {section!r}; expected keys and values, for instance "
            "{'name': 'simclr', 'size': 96}."
        )
    settings = dict(section)
    kind = settings.pop("kind", "image")
    module = importlib.import_module(kind if "." in kind else f"cl_jax.views.{kind}")
    view: View = module.make(**settings)
    return view


def factories(kind: str, section: Mapping[str, Any]) -> list[Callable[..., Any]]:
    """The functions whose keywords are the settings of a config section of a kind."""
    module = importlib.import_module(kind if "." in kind else f"cl_jax.views.{kind}")
    keywords = inspect.signature(module.make).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in keywords):  # those of a recipe
        preset = getattr(presets, str(section.get("name", "")), None)
        return [module.make, Recipe, *([preset] if callable(preset) else [])]
    return [module.make]


def unset(section: Mapping[str, Any]) -> dict[str, Any]:
    """{key: what the view has where its section leaves that key out}, of those keys of a config
    section that may be left out."""
    settings = {key: value for key, value in section.items() if key not in ("copies", "kind")}
    kind = section.get("kind", "image")
    found: dict[str, Any] = {"copies": 1, "kind": "image"}
    for key in settings:
        parameter = inspect.signature(factories(kind, settings)[-1]).parameters.get(key)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            found[key] = parameter.default
        elif parameter is None and key != "name":  # of the recipe that a preset makes
            rest = {name: value for name, value in settings.items() if name != key}
            with contextlib.suppress(ValueError):
                recipe = getattr(make(rest | {"kind": kind}), "recipe", None)
                found[key] = getattr(recipe, key, None)
    return found


def draw(views: Sequence[View], batch: Batch, key: jax.Array) -> list[Any]:
    """One result for each view. View v of an example is drawn by fold_in(fold_in(key, id), v)."""
    keys = example_keys(key, batch["id"])
    images = [view for view in views if isinstance(view, ImageView)]
    if len(images) == len(views) and "image_b" not in batch:
        return list(image.together(images, keys, batch))
    return [view.draw(view_keys(keys, v), batch) for v, view in enumerate(views)]


def fields(views: Sequence[View], *more: str) -> dict[str, Any]:
    """{"needs": ..., "wants": ...}: the batch fields of all views together, for `from_loss`.
    `more`: further fields that the loss needs, a label for instance."""
    needs = dict.fromkeys(field for view in views for field in view.needs)
    wants = dict.fromkeys(field for view in views for field in view.wants)
    return {"needs": (*needs, *(field for field in more if field not in needs)), "wants": (*wants,)}


def keywords(views: Sequence[View], *more: str) -> dict[str, Any]:
    """What most methods take from their views, as keywords of `from_loss`: "views", drawn by the
    step's key; "clean", of the first; and `fields`."""
    return {
        "views": lambda batch, key: draw(views, batch, key),
        "clean": views[0].clean,
        **fields(views, *more),
    }
