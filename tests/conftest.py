"""Test environment: eight CPU devices, strict numerics, warnings as errors (pyproject.toml)."""

import gc
import os
import signal
import threading

import threadpoolctl

from cl_jax.core import xla

# Before jax is imported. Most of a short test's time is the compiler's: programs so small need no
# optimisation, no division into parts that are compiled apart, and no stack of Python in their
# operations. The slow suite runs what users run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = ["--xla_force_host_platform_device_count=8"]
if not os.environ.get("CL_JAX_SLOW"):
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_backend_optimization_level=0"]
    _FLAGS += ["--xla_cpu_parallel_codegen_split_count=1"]
    os.environ.setdefault("JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS", "false")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), *filter(xla.known, _FLAGS)]
).strip()
xla.prepare("cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "jax"),
)
# A program that is read takes half of the time of one that is compiled, and tests of the trainer
# compile the same one often. Operations alone, which are quicker, would be files by the thousand.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Tests of it turn it on: what the others compile is for jax's cache, and they patch the package.
os.environ.setdefault("CL_JAX_KEEP_PROGRAMS", "0")

# Waiting threads of BLAS and OpenMP spin: where other workers want the cores too, tests that fit
# classifiers take ten times their processor time. The environment is read by the workers, by
# programs that tests start, and by libraries that are loaded later; a plugin of pytest has loaded
# numpy already.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
threadpoolctl.threadpool_limits(1)

# A shell's background job ignores SIGINT and `nohup` SIGHUP, and so would the programs that tests
# start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import jax
from jax.interpreters import mlir
from jaxlib.mlir import ir

jax.config.update("jax_numpy_rank_promotion", "raise")
# An error inside of a traced function has the frames of JAX taken out, which asks the disk about
# each: most of the time of the tests of errors. The programs that tests start have them filtered.
jax.config.update("jax_traceback_filtering", "off")

# JAX lowers each program in an MLIR context of its own, which takes 5 ms to fill, and 1.4 MB for as
# long as the program is cached: gigabytes after thousands of tests. Here the programs of a thread
# share one. It keeps their constants, so that a new one is made now and then. A program that is
# lowered amid another one has its own: copies of it would be put into the other.
_lowering = threading.local()
_init = mlir.ModuleContext.__init__


def _share_context(self, *args, context=None, **kwargs):
    if context is not None or ir.Context.current is not None:
        _init(self, *args, context=context, **kwargs)
        return
    number = getattr(_lowering, "number", 0)
    _init(self, *args, context=_lowering.context if number % 256 else None, **kwargs)
    _lowering.number, _lowering.context = number + 1, self.context


mlir.ModuleContext.__init__ = _share_context

# Tracing makes objects by the million, of which few are cycles to collect.
gc.set_threshold(200_000, 20, 20)


def pytest_collection_finish(session):
    """Modules and tests stay: collections need not visit them."""
    gc.collect()
    gc.freeze()
