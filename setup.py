"""The package's folders; all else is in setup.cfg. The top-level folder `configs` is installed as
cl_jax.configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cl_jax", "cl_jax.*"]), "cl_jax.configs"],
    package_dir={"cl_jax.configs": "configs"},
)
