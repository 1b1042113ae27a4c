"""The verbs of `cl-jax`, a module each."""
