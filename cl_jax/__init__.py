"""cl_jax: contrastive and self-supervised learning in JAX. Import the piece you need: `import
cl_jax.losses`."""

__version__ = "0.1.0"
