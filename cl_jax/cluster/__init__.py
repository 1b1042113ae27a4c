"""Clusters of features, found between epochs; import the one you need: `from cl_jax.cluster import
kmeans`."""
