"""Augmentation: operators and whole recipes with their draws pinned, tv (torchvision, PIL), tf
(SimCLR, BYOL), CMC."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from cl_jax.views import blur, colour, crop, lab, planes, presets, recipe
from tests.goldens import Case, Golden

# Tolerances of images are absolute: above every value, `floor` turns the table's relative bound
# into one.
FLOOR = 1e3
LEVEL = 1 / 255
# The repositories' PIL pipelines round to 8 bits after every operator; ours is float. Largest
# difference, grey levels.
PIL_LEVELS = 30


def absolute(run, bound, **bounds):
    held = {name: (value / FLOOR, 0.0) for name, value in bounds.items()}
    return Golden(run, f64=bound / FLOOR, f32=None, floor=FLOOR, bounds=held)


def _levels(x):
    """Our floats in the units of a uint8 file."""
    return planes.pixels(planes.clip(x)) * 255


def _resized(interpolation, box="box", clip=False):
    def run(case: Case):
        size = (case["out_h"], case["out_w"])
        x = crop.resized_crop(
            planes.planes(case["image"]), case[box], size, interpolation=interpolation, clip=clip
        )
        return {"out": planes.pixels(x)}

    return run


def _simclr_centre(case):
    height, width = case["image"].shape[:2]
    box = crop.centre_box(height, width, case["proportion"], case["out_w"] / case["out_h"])
    x = crop.resized_crop(
        planes.planes(case["image"]),
        box,
        (case["out_h"], case["out_w"]),
        interpolation="tf_bicubic",
    )
    return {"out": planes.pixels(x)}


def _single(x, factors, additive, **family):
    return {
        "only_brightness": colour.brightness(x, factors[0], additive=additive),
        "only_contrast": colour.contrast(x, factors[1], **family),
        "only_saturation": colour.saturation(x, factors[2], **family),
        "only_hue": colour.hue(x, factors[3]),
    }


def _simclr_jitter(additive, case):
    x = planes.planes(case["image"])
    out = _single(x, case["factors"], additive, family="tf")
    out["out"] = colour.jitter(
        x, colour.Jitter(case["order"], case["factors"]), family="tf", additive=additive
    )
    return {name: planes.pixels(value) for name, value in out.items()}


def _simclr_blur(case):
    x, size = planes.planes(case["image"]), case["kernel_size"]
    blurred = partial(blur.blur, sigma=case["sigma"], padding="zero")
    both = jnp.stack([x, x[:, ::-1]])
    batch = jax.vmap(lambda x, u: blurred(x, radius=size // 2, apply=u < 0.5))(
        both, case["selector"]
    )
    return {
        "out": planes.pixels(blurred(x, radius=size // 2)),
        "batch_out": planes.pixels(planes.clip(batch)),
    }


def _draw(case, box, **replaced):
    names = ("flip", "jitter", "order", "factors", "gray", "blur", "sigma", "solarize")
    return recipe.Draw(box, *(replaced[name] if name in replaced else case[name] for name in names))


def _simclr_whole(additive, case):
    used = presets.simclr_cifar(case["size"], case["strength"], additive_brightness=additive)
    drawn = _draw(case, case["box"], blur=False, sigma=1.0, solarize=False)
    return {"out": planes.pixels(recipe.transform(used, drawn, planes.planes(case["image"])))}


def _byol_crop(case):
    height, width = case["image"].shape[:2]
    box_h, box_w = crop.byol_sides(
        height, width, jnp.float32(case["area_fraction"]), jnp.float32(case["log_ratio"])
    )
    box = jnp.stack([jnp.int32(case["offset_h"]), jnp.int32(case["offset_w"]), box_h, box_w])
    only_crop = dataclasses.replace(
        presets.byol(1, case["size"]), order=(), jitter=0.0, gray=0.0, blur=0.0, mean=None, std=None
    )
    drawn = recipe.Draw(box, *[None] * 8)
    return {
        "out": planes.pixels(recipe.transform(only_crop, drawn, planes.planes(case["image"]))),
        "box": box,
    }


def _byol_centre(case):
    test = dataclasses.replace(presets.byol(1, case["size"]), mean=None, std=None)
    return {"out": recipe.evaluate(test, case["image"][None])[0]}


def _byol_jitter(case):
    x = planes.planes(case["images"])

    def one(x, order, factors, jitter, gray):
        x = colour.jitter(
            x, colour.Jitter(order, factors), family="tf", additive=True, apply=jitter
        )
        return colour.grayscale(x, colour.LUMA_TENSOR, gray)

    out = _single(x[0], case["factors"][0], True, family="tf")
    out["out"] = jax.vmap(one)(x, case["order"], case["factors"], case["jitter"], case["gray"])
    return {name: planes.pixels(value) for name, value in out.items()}


def _byol_blur(case):
    x = planes.planes(case["images"])
    radius = int(x.shape[2] / case["blur_divider"] / 2)
    blurred = jax.vmap(
        lambda x, sigma, on: blur.blur(x, sigma, radius=radius, padding="zero", apply=on)
    )
    return {"out": planes.pixels(blurred(x, case["sigma"], case["apply"]))}


def _byol_solarize(case):
    x = planes.planes(case["images"])
    out = jax.vmap(partial(planes.solarize, threshold=case["threshold"]))(x, apply=case["apply"])
    return {
        "out": planes.pixels(out),
        "flipped": planes.pixels(jax.vmap(planes.flip)(x, case["flip"])),
    }


def _byol_whole(case):
    out = {}
    for view in (1, 2):
        drawn = case.group(f"view{view}_")
        x = planes.planes(case[f"view{view}"])
        side = x.shape[2]
        used = dataclasses.replace(presets.byol(view, side), mean=None, std=None)
        boxes = jnp.broadcast_to(jnp.array([0, 0, side, side]), (x.shape[0], 4))
        draws = recipe.Draw(boxes, *(drawn[name] for name in recipe.Draw._fields[1:-1]))
        out[f"out_view{view}"] = planes.pixels(jax.vmap(partial(recipe.transform, used))(draws, x))
    return out


def _tv_crop(case):
    out, x, size = {}, planes.planes(case["image"]), (case["out_h"], case["out_w"])
    for name in ("bilinear", "bicubic"):
        cut = partial(crop.resized_crop, x, case["box"], size, interpolation=name)
        out |= {name: _levels(cut(clip=True)), f"{name}_float": planes.pixels(cut())}
    return out


def _tv_jitter(case):
    out, x = {}, planes.planes(case["image"])
    draw = colour.Jitter(case["order"], case["factors"])
    for suffix, weights in (("", colour.LUMA_PIL), ("_float", colour.LUMA_TENSOR)):
        made = _single(x, case["factors"].astype(x.dtype), False, family="tv", luma_weights=weights)
        made["out"] = colour.jitter(x, draw, family="tv", luma_weights=weights)
        out |= {
            name + suffix: planes.pixels(planes.clip(value)) if suffix else _levels(value)
            for name, value in made.items()
        }
    return out


def _tv_misc(case):
    x = planes.planes(case["image"])
    norm = {
        "imagenet": (presets.IMAGENET_MEAN, presets.IMAGENET_STD),
        "cifar": (presets.CIFAR_MEAN, presets.CIFAR_STD),
        "swav": (presets.IMAGENET_MEAN, presets.SWAV_STD),
    }
    return {
        "solarize": _levels(planes.solarize(x)),
        "hflip": _levels(planes.flip(x)),
        "grayscale": _levels(colour.grayscale(x)),
        "grayscale_float": planes.pixels(colour.grayscale(x, colour.LUMA_TENSOR)),
        **{
            f"normalize_{name}": planes.pixels(planes.normalise(x, *numbers))
            for name, numbers in norm.items()
        },
    }


def _tv_blur(case):
    x = planes.planes(case["image"], jnp.float64)
    blurred = blur.blur(x, case["sigma"], radius=12, padding="edge")
    return {"out": _levels(blurred), "exact_gaussian_formula": planes.pixels(blurred) * 255}


def _tv_boxes(case):
    names = ("height", "width", "area_draw", "logratio_draw", "offset_draw")
    box = partial(
        crop.tv_box,
        scale=tuple(case.numpy("scale").tolist()),
        ratio=tuple(case.numpy("ratio").tolist()),
    )
    # The authors draw in float32 but compute sides in Python's floats.
    given = (case[name].astype(jnp.float64) if "draw" in name else case[name] for name in names)
    boxes, attempts = jax.vmap(box)(*given)
    return {"box": boxes, "attempts": attempts}


def _whole(preset, case):
    used = preset(size=case["size"])
    drawn = _draw(case, case["box"], factors=case["factors"].astype(jnp.float32))
    return {"out": planes.pixels(recipe.transform(used, drawn, planes.planes(case["image"])))}


def _whole_row(preset):
    return absolute(partial(_whole, preset), PIL_LEVELS * LEVEL / min(preset().std))


def _cmc(preset, case):
    used = preset()
    x = lab.convert(planes.planes(case["rgb"], case.dtype), used.colour_space)
    normalised = planes.normalise(x, used.mean, used.std)
    return {
        "converted": planes.pixels(x),
        "normalised": planes.pixels(normalised),
        "mean": jnp.array(used.mean),
        "std": jnp.array(used.std),
    }


TABLE = {
    "simclr-crop": absolute(_resized("tf_bicubic"), 2e-6),
    "simclr-centercrop": absolute(_simclr_centre, 2e-6),
    "simclr-jitterv1": absolute(partial(_simclr_jitter, True), 1e-5),
    "simclr-jitterv2": absolute(partial(_simclr_jitter, False), 1e-5),
    "simclr-gray": absolute(
        lambda case: {
            "out": planes.pixels(colour.grayscale(planes.planes(case["image"]), colour.LUMA_TENSOR))
        },
        2e-6,
    ),
    "simclr-blur": absolute(_simclr_blur, 2e-6),
    "simclr-augv1": absolute(partial(_simclr_whole, True), 1e-5),
    "simclr-augv2": absolute(partial(_simclr_whole, False), 1e-5),
    "byol-crop": absolute(_byol_crop, 2e-6),
    "byol-centercrop": absolute(_byol_centre, 2e-6),
    "byol-jitter": absolute(_byol_jitter, 1e-5),
    "byol-blur": absolute(_byol_blur, 2e-6),
    "byol-solarize": absolute(_byol_solarize, 2e-6),
    "byol-postprocess": absolute(_byol_whole, 1e-5),
    "tv-crop": absolute(_tv_crop, 2e-6, bilinear=1.1, bicubic=1.6),
    "tv-jitter": absolute(
        _tv_jitter,
        2e-6,
        out=12,
        only_hue=12,
        only_brightness=1.3,
        only_contrast=1.3,
        only_saturation=1.3,
    ),
    "tv-misc": absolute(_tv_misc, 1e-6, solarize=1e-4, hflip=1e-4, grayscale=1),
    # PIL's blur is three boxes, not a Gaussian: 30 levels at single pixels of noise. The formula is
    # held to 1e-9.
    "tv-blur": absolute(_tv_blur, 30, exact_gaussian_formula=1e-9),
    "tv-rrcparams": Golden(_tv_boxes, f64=0, f32=None),
    "moco-augv1": _whole_row(presets.moco_v1),
    "moco-augv2": _whole_row(presets.moco_v2),
    "moco-augcifar": _whole_row(presets.moco_cifar),
    "mocov3-aug1": _whole_row(partial(presets.moco_v3, 1)),
    "mocov3-aug2": _whole_row(partial(presets.moco_v3, 2)),
    "simsiam-aug": _whole_row(presets.simsiam),
    "swav-aug": _whole_row(presets.swav),
    "instdisc-augimagenet": _whole_row(presets.instdisc),
    "instdisc-augcifar": _whole_row(presets.instdisc_cifar),
    "invaspread-augcifar": _whole_row(presets.invaspread),
    "dino-augglobal1": _whole_row(partial(presets.dino, "global1")),
    "dino-augglobal2": _whole_row(partial(presets.dino, "global2")),
    "dino-auglocal": _whole_row(partial(presets.dino, "local")),
    "cmc-lab": Golden(
        partial(_cmc, presets.cmc_lab), f64=1e-10, f32=3e-6, bounds={"normalised": (1e-10, 5e-6)}
    ),
    "cmc-ycbcr": Golden(
        partial(_cmc, presets.cmc_ycbcr), f64=1e-11, f32=1e-6, bounds={"normalised": (1e-11, 2e-6)}
    ),
    "cmc-ydbdr": Golden(partial(_cmc, presets.cmc_ydbdr), f64=1e-11, f32=1e-6),
}
