"""What accelerators can do: peak arithmetic, memory, bandwidth, links. Vendors' data sheets, dense
rates.

Rates are of one JAX device: a whole TPU chip from v4 on, one of the two cores of a v2 or v3 chip.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator. Rates in FLOP/s and bytes/s, memory in bytes; `link` is what it sends to its
    neighbours in all."""

    name: str
    bfloat16: float
    float32: float  # of matmuls at JAX's default precision on that device
    exact: float  # of float32 matmuls at Precision.HIGHEST
    memory: float
    bandwidth: float
    link: float


GB, TB, TERA, GIB = 1e9, 1e12, 1e12, 2.0**30

# NVIDIA: data sheets of V100, A100 80 GB SXM, H100 SXM, H200 SXM, B200; float32 is TF32 from Ampere
# on, which HIGHEST turns off. TPU: Google Cloud's system architecture pages; default float32
# matmuls run as bfloat16 there, HIGHEST in six passes.
DEVICES = {
    "v100": Device(
        "NVIDIA V100 SXM2 32 GB", 125 * TERA, 15.7 * TERA, 15.7 * TERA, 32 * GIB, 0.9 * TB, 150 * GB
    ),
    "a100": Device(
        "NVIDIA A100 SXM 80 GB", 312 * TERA, 156 * TERA, 19.5 * TERA, 80 * GIB, 2.039 * TB, 300 * GB
    ),
    "h100": Device(
        "NVIDIA H100 SXM 80 GB", 989 * TERA, 494.5 * TERA, 67 * TERA, 80 * GIB, 3.35 * TB, 450 * GB
    ),
    "h200": Device(
        "NVIDIA H200 SXM 141 GB", 989 * TERA, 494.5 * TERA, 67 * TERA, 141 * GB, 4.8 * TB, 450 * GB
    ),
    "v4": Device("TPU v4", 275 * TERA, 275 * TERA, 275 / 6 * TERA, 32 * GIB, 1.228 * TB, 300 * GB),
    "v5e": Device(
        "TPU v5e", 197 * TERA, 197 * TERA, 197 / 6 * TERA, 16 * GIB, 0.819 * TB, 200 * GB
    ),
    "v5p": Device(
        "TPU v5p", 459 * TERA, 459 * TERA, 459 / 6 * TERA, 95 * GIB, 2.765 * TB, 600 * GB
    ),
    "v6e": Device("TPU v6e", 918 * TERA, 918 * TERA, 918 / 6 * TERA, 32 * GIB, 1.64 * TB, 400 * GB),
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What XLA's compiler asks about an NVIDIA GPU that need not be there."""

    capability: tuple[int, int]
    multiprocessors: int
    lanes: int  # float32 operations of a multiprocessor in a cycle
    shared: int  # bytes of shared memory of a multiprocessor
    cache: int  # bytes of L2
    clock: float  # GHz, boosted


# NVIDIA: CUDA C++ Programming Guide, "Compute Capabilities"; architecture white papers of A100 and
# H100.
CHIPS = {
    "a100": Chip((8, 0), 108, 64, 164 << 10, 40 << 20, 1.41),
    "h100": Chip((9, 0), 132, 128, 228 << 10, 50 << 20, 1.98),
    "h200": Chip((9, 0), 132, 128, 228 << 10, 50 << 20, 1.98),
}


def target(name: str) -> str:
    """A device of `CHIPS` in the words of XLA's `GpuTargetConfigProto`."""
    chip, device = CHIPS[name], DEVICES[name]
    major, minor = chip.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  core_count: {chip.multiprocessors}
  fpus_per_core: {chip.lanes}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {chip.shared - 1024}
  shared_memory_per_core: {chip.shared}
  memory_bandwidth: {device.bandwidth:.0f}
  device_memory_size: {device.memory:.0f}
  l2_cache_size: {chip.cache}
  clock_rate_ghz: {chip.clock}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{device.name}"
"""


# What jax calls them (`jax.Device.device_kind`), in lower case.
KINDS = {
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5p": "v5p",
    "tpu v5": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
}


def known(device_kind: str) -> Device | None:
    """The record of what `jax.Device.device_kind` names, or None."""
    kind = device_kind.lower()
    if kind in KINDS:
        return DEVICES[KINDS[kind]]
    return next((DEVICES[name] for name in ("h200", "h100", "a100", "v100") if name in kind), None)


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Peak FLOP/s of matmuls in "bfloat16" or "float32"; None for a device that is not in the
    table."""
    device = known(device_kind)
    if device is None:
        return None
    return device.bfloat16 if dtype == "bfloat16" else device.float32


def rate(device: Device, dtype: str, exact: bool) -> float:
    """FLOP/s of products of a type as XLA names it; `exact`: asked for at HIGHEST."""
    if dtype in ("bf16", "f16"):
        return device.bfloat16
    return device.exact if exact else device.float32
