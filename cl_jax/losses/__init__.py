"""Losses: pure functions on arrays that import jax alone."""

from cl_jax.losses.contrast import LOG_ZERO, Contrast, allow, contrast, not_self, row_ids, same_id, same_label

__all__ = ["LOG_ZERO", "Contrast", "allow", "contrast", "not_self", "row_ids", "same_id", "same_label"]
