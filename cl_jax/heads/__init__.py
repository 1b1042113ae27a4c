"""What stands between features and a loss; import the one you need: `from cl_jax.heads import
mlp`."""
