"""The network of a run for other libraries: their names as safetensors, a Hugging Face folder, ONNX
or StableHLO. What is written is compared with the run at once, on random inputs."""

import shutil
import tempfile
from pathlib import Path

from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.core.paths import user_path
from cl_jax.training.trained import Trained
from cl_jax.weights import card, folders, limits, network, padding, programs

TARGETS = ("torchvision", "timm", "huggingface", "onnx", "stablehlo")
TOLERANCE = 1e-4


def write(run: Trained, to: str, out: str | Path) -> list[str]:
    """Writes the network of a run into a new folder; returns lines about it.

    Args:
      run: see `cl_jax.load`.
      to: one of `TARGETS`.
      out: the folder; it appears when all is written and checked.

    Raises:
      ConfigError: a network that the target cannot express, with the layer; answers that differ by
        more than 1e-4, of their root mean square where that is above 1; a library that the target
        needs; a folder that is there, or cannot be made.
      SaveError: its files cannot be written.
    """
    place = user_path(out)
    if place.exists():
        raise ConfigError(f"{place} is there already; give a new folder as --out.")
    if to not in TARGETS:
        raise ConfigError(f"to={to!r}; expected one of {', '.join(TARGETS)}.")
    net = network.of_run(run)
    limits.refuse(net, to)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        held = tempfile.TemporaryDirectory(dir=place.parent)
    except OSError as error:
        raise ConfigError(f"--out={out} cannot be written: {error}.") from None
    with held as found:
        folder = Path(found) / "whole"
        try:
            folder.mkdir()
            lines = _fill(folder, run, net, to)
            shutil.move(str(folder), place)
        except OSError as error:
            # What libraries raise of files that they miss has no number.
            if isinstance(error, ConfigError | SaveError) or error.errno is None:
                raise
            raise SaveError(
                f"--out={out} cannot be written: {error.strerror}. Make room there, or give "
                "another --out."
            ) from error
    return [f"in {place}: {', '.join(sorted(path.name for path in place.iterdir()))}", *lines]


def _fill(folder: Path, run: Trained, net: network.Network, to: str) -> list[str]:
    """Writes the files and compares them with the run; returns lines about that."""
    writer = {"onnx": programs.onnx_file, "stablehlo": programs.stablehlo_file}.get(to)
    if writer is not None:
        difference, how = writer(net, folder)
    elif net.kind in ("transformer", "clip"):
        difference, how = folders.tokens(run, net, folder)
    else:
        difference, how = folders.images(net, to, folder)
    if not difference.relative <= TOLERANCE:
        raise ConfigError(
            f"the exported network's answers differ by {difference} from the run's; expected at "
            f"most {TOLERANCE:g}. Nothing was written."
        )
    lines = [f"largest difference on random inputs {difference}, {how}"]
    if limits.narrow(net, to):
        lines.append(padding.told(net))
    (folder / "README.md").write_text(
        card.text(run, net, to, lines), encoding="utf-8", errors="backslashreplace"
    )
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors are written for their owner alone
    return lines
