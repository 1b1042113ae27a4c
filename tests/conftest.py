"""Test environment: eight CPU devices, strict numerics, warnings as errors (pyproject.toml)."""

import os

# Before jax is imported. The convolution flag doubles the speed of training steps on jaxlib 0.10 and 0.11 CPUs.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
