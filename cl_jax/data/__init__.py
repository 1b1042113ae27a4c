"""Data sources and batches. A source module `cl_jax.data.<name>` has `make(*, ...) -> Splits`; see
docs/guides/data.md."""
