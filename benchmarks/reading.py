"""What reading costs before any training: batches, JPEGs, a listing and an epoch's order.

python benchmarks/reading.py [--files 20000] [--small]

  batches   images/s of a source in memory through the host's path, which a set that does not lie on
            the device takes, by batch size: rows of an array, and examples that are read one by one
  JPEGs     one thread, images/s of `cl_jax.data.images.decode` to the central square of at most
            256 pixels, against torchvision's Resize and CenterCrop, by size
  listing   a folder's files with their sizes and times, against os.scandir with a stat of each file
  order     `balanced_order` against one np.argsort of the groups

In turn; seconds are of processor time, medians."""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import _timing

SIZES = ((96, 96), (500, 375), (4000, 3000))  # width, height


def batches_of(sizes: tuple[int, ...], seconds: float, in_memory: bool) -> dict[int, float]:
    """{batch size: images/s}, of a source whose arrays are known or of one that reads examples."""
    import dataclasses

    import numpy as np

    from cl_jax.data import batches
    from cl_jax.data.source import from_arrays

    images = np.random.default_rng(0).integers(0, 256, (16_384, 32, 32, 3), np.uint8)
    source = from_arrays("random", {"image": images}, {})
    if not in_memory:
        source = dataclasses.replace(source, arrays=None)
    found = {}
    for size in sizes:
        loaded = batches.host_batches(source, batch_size=size, seed=0, start_step=0, steps=10**6)
        for _ in itertools.islice(loaded, 3):
            pass
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            next(loaded)
            count += size
        found[size] = count / (time.perf_counter() - began)
        loaded.close()
    return found


def jpeg(width: int, height: int) -> bytes:
    """A JPEG of smooth noise."""
    import io

    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
    noise = rng.normal(0, 6, (height, width, 3))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + noise
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def decoders(data: bytes, side: int) -> dict[str, Any]:
    """{form: one decoding to the central square of a side}."""
    import io

    import numpy as np
    from PIL import Image

    from cl_jax.data import images

    def pillow():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = side / min(image.size)
        width, height = (round(scale * size) for size in image.size)
        if scale != 1:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - side) // 2, (height - side) // 2
        return np.asarray(image.crop((left, top, left + side, top + side)))

    return {
        "cl_jax": lambda: images.decode_bytes(data, "a.jpg", image_size=side, channels=3),
        "Pillow": pillow,
    }


def stat_of_each(root: Path) -> int:
    """Files of two levels by os.scandir and a stat each."""
    count = 0
    for folder in os.scandir(root):
        for entry in os.scandir(folder.path):
            entry.stat()
            count += 1
    return count


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--small", action="store_true", help="little of all, to try the program")
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    import numpy as np

    from cl_jax.data import batches, listing

    if args.small:
        args.files, args.repeats, args.seconds = 50, 3, 0.1
    sizes = (64,) if args.small else (64, 256, 1024, 4096)
    record: dict[str, Any] = {"batches": {}, "decoding": {}}
    rows: list[list[Any]] = []
    for kind, in_memory in (("of an array", True), ("read one by one", False)):
        rates = record["batches"][kind] = batches_of(sizes, args.seconds, in_memory)
        rows += [
            [f"batches of {size}, {kind}", f"{rate:,.0f} images/s", ""]
            for size, rate in rates.items()
        ]
    for width, height in SIZES[:1] if args.small else SIZES:
        side = min(height, 256)
        runs, calls = decoders(jpeg(width, height), side), max(1, 60_000 // (width * height))
        times = _timing.in_turn(
            {
                name: lambda run=run, calls=calls: [run() for _ in range(calls)]
                for name, run in runs.items()
            },
            repeats=max(args.repeats, 3),
            limit=2 * args.seconds,
        ).processor
        record["decoding"][f"{width}x{height}"] = times
        rate = calls / statistics.median(times["cl_jax"])
        by = _timing.ratio(times, "Pillow", "cl_jax")
        rows.append([f"JPEG {width} x {height}", f"{rate:,.0f} images/s", by])
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for number in range(args.files):
            folder = root / f"class{number % 10}"
            folder.mkdir(exist_ok=True)
            (folder / f"{number:06d}.jpg").write_bytes(b"\xff\xd8" + number.to_bytes(4, "big"))
        times = _timing.in_turn(
            {"listing": lambda: listing.of(root), "stat": lambda: stat_of_each(root)},
            repeats=args.repeats,
        ).processor
    record["listing"] = times
    cost = statistics.median(times["listing"])
    rows.append(
        [f"listing {args.files} files", f"{cost:.3g} s", _timing.ratio(times, "listing", "stat")]
    )
    size = 10_000 if args.small else 1_281_167
    groups = np.random.default_rng(0).integers(0, 10_000, size)
    times = _timing.in_turn(
        {
            "order": lambda: batches.balanced_order(0, 0, groups),
            "argsort": lambda: np.argsort(groups, kind="stable"),
        },
        repeats=args.repeats,
        limit=2 * args.seconds,
    ).processor
    record["order"] = times
    cost = statistics.median(times["order"])
    rows.append(
        [f"balanced order of {size}", f"{cost:.3g} s", _timing.ratio(times, "order", "argsort")]
    )
    record |= _timing.facts("grain", "pillow", "simplejpeg", repeats=args.repeats)
    text = (
        "Ratios: of a JPEG Pillow's time by ours, of a listing ours by scandir with stat, of an "
        "order ours by one argsort\n\n" + _timing.table(["", "cl_jax", "ratio"], rows)
    )
    _timing.write("reading" + ("_small" if args.small else ""), record, text, args.out)


if __name__ == "__main__":
    main()
