"""cl_jax: contrastive and self-supervised learning in JAX. Import the piece you need: `import
cl_jax.losses`. Of a run, `cl_jax.load("runs/mine")` gives the network and its features, and
`cl_jax.Features("runs/mine")` the same as a transformer of scikit-learn."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_jax.training.trained import Trained, load
    from cl_jax.training.transformer import Features

__version__ = "0.1.0"
__all__ = ["Features", "Trained", "load"]


def __getattr__(name: str) -> Any:
    # When first asked for: `import cl_jax` imports no jax.
    if name in __all__:
        from cl_jax.training import trained, transformer

        return getattr(transformer if name == "Features" else trained, name)
    raise AttributeError(f"module 'cl_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
