"""Networks from images to features; import the one you need: `from cl_jax.encoders import
resnet`."""
