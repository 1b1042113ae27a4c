from cl_jax.training import defaults as common

__all__ = ["common"]
