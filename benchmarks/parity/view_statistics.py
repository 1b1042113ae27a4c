"""What the views of a program look like, in numbers: geometry from images whose colours are their
coordinates, colours from photographs that are not cropped."""

from pathlib import Path

import numpy as np

RAMPS, PHOTOGRAPHS = 2000, 1000


def ramps(count):
    """uint8 [N, 32, 32, 3]: red is x, green is y."""
    places = np.rint(np.arange(32) * 255 / 31).astype(np.uint8)
    one = np.zeros((32, 32, 3), np.uint8)
    one[..., 0], one[..., 1] = places[None, :], places[:, None]
    return np.repeat(one[None], count, axis=0)


def export(path, drawn):
    """Writes the views of `drawn(pixels, **changes of the recipe)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.load(Path(path).parent.parent / "data" / "test.npz")
    photographs = data["image"][:PHOTOGRAPHS]
    np.savez(
        path,
        geometry=drawn(ramps(RAMPS), jitter=0.0, gray=0.0),
        colours=drawn(photographs, scale=(1.0, 1.0), flip=0.0),
        whole=drawn(photographs),
    )


def statistics(path):
    """{name: (mean, deviation)} of a file of `export`."""
    views = np.load(path)
    found = {}

    def note(name, values):
        found[name] = (float(np.mean(values)), float(np.std(values)))

    x, y = views["geometry"][..., 0].mean(1), views["geometry"][..., 1].mean(2)
    # The middle of the view, where no pixel of the edge is repeated.
    side = x.shape[1]
    middle = slice(side // 4, side - side // 4)
    place = np.arange(side)[middle]
    width, height = (
        np.polyfit(place, values[:, middle].T, 1)[0] * side * 31 / 32 for values in (x, y)
    )
    note("crop: share of the area", np.abs(width * height))
    note("crop: log of width / height", np.log(np.abs(width) / np.abs(height)))
    note("flipped", width < 0)
    note("crop: centre, x", x.mean(1))
    note("crop: centre, y", y.mean(1))
    for kind, title in (("colours", "colours alone"), ("whole", "all operators")):
        pixels = views[kind].astype(np.float64)
        spread = pixels.max(-1) - pixels.min(-1)
        note(f"{title}: mean", pixels.mean((1, 2, 3)))
        note(f"{title}: contrast (deviation of a view)", pixels.std((1, 2, 3)))
        note(f"{title}: saturation (largest - least channel)", spread.mean((1, 2)))
        note(f"{title}: red - blue", (pixels[..., 0] - pixels[..., 2]).mean((1, 2)))
        note(f"{title}: grey", spread.max((1, 2)) < 0.01)
        note(f"{title}: least value", pixels.min((1, 2, 3)))
        note(f"{title}: largest value", pixels.max((1, 2, 3)))
        note(
            f"{title}: detail (neighbouring pixels apart)",
            np.abs(np.diff(pixels, axis=2)).mean((1, 2, 3)),
        )
    return found
