"""Sets XLA's flags by platform, before jax is asked for a device.

XLA reads XLA_FLAGS once and ends the process on a flag that it does not know, so each flag is
looked up in the installed libraries first. A flag that the user has set is left as it is. Nothing
here imports jax."""

import importlib.util
import mmap
import os
from pathlib import Path

FLAGS = {
    # The gradient of a convolution's kernel goes to the YNNPACK library by default and runs at a
    # third to a fifth of Eigen's rate (jaxlib 0.10 and 0.11): training steps of a ResNet-18 take
    # 0.45 to 0.7 of the time with the flag.
    "cpu": ("--xla_cpu_experimental_ynn_fusion_type=-individual_convolution",),
    # Moves collectives away from where their results are wanted: docs.jax.dev, "GPU performance
    # tips"; NVIDIA's JAX images set it too. One device has no collectives and computes as before.
    "gpu": ("--xla_gpu_enable_latency_hiding_scheduler=true",),
    "tpu": (),
}
LEVEL = "xla_backend_optimization_level"
KEEP_PROGRAMS = "CL_JAX_KEEP_PROGRAMS"
_NAMES = {"cpu": "cpu", "gpu": "gpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}


def prepare(platform: str | None = None) -> str:
    """Adds the platform's flags to XLA_FLAGS; returns those added, "" for none.

    Args:
      platform: "cpu", "gpu" or "tpu"; None for the one that jax is going to choose, as far as
        `chosen` can tell.
    """
    given = os.environ.get("XLA_FLAGS", "")
    names = {word.split("=")[0] for word in given.split()}
    added = [
        flag
        for flag in FLAGS[platform or chosen()]
        if flag.split("=")[0] not in names and known(flag)
    ]
    if added:
        os.environ["XLA_FLAGS"] = " ".join([*given.split(), *added])
    return " ".join(added)


def keep_programs() -> None:
    """Lets this program, and those that it starts, read compiled steps without tracing them
    (`training.programs`), unless the environment says otherwise. For a command line: a program that
    changes functions of this package at run time would be given the steps of another start."""
    os.environ.setdefault(KEEP_PROGRAMS, "1")


def optimised(level: int, platform: str) -> dict[str, int]:
    """Compiler options of a program that LLVM shall optimise less than at its usual level, 3. None
    on other platforms than a "cpu", and where XLA_FLAGS sets the level."""
    given = os.environ.get("XLA_FLAGS", "")
    if platform != "cpu" or LEVEL in given:
        return {}
    return {LEVEL: level}


def chosen() -> str:
    """The platform of JAX_PLATFORMS, else that of the plug-in that is installed, else "cpu".

    A plug-in without its device counts as the device: JAX_PLATFORMS=cpu says that it is not there.
    """
    asked = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if asked in _NAMES:
        return _NAMES[asked]
    if _folders("jax_plugins"):
        return "gpu"
    return "tpu" if _folders("libtpu") else "cpu"


def known(flag: str) -> bool:
    """Whether every XLA that is installed for jax has a flag of this name."""
    name = (
        b"\0" + flag.split("=")[0].lstrip("-").encode() + b"\0"
    )  # as a whole string, not as part of a description
    libraries = [path for folder in _folders("jaxlib") for path in folder.glob("lib*.so")]
    libraries += [path for folder in _folders("jax_plugins") for path in folder.glob("*/*.so")]
    compilers = [
        path for path in libraries if path.stat().st_size > 50e6
    ]  # the others are bindings
    return bool(compilers) and all(_holds(path, name) for path in compilers)


def _holds(path: Path, text: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return (
        [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    )
