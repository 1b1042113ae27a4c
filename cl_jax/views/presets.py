"""Recipes: what the published systems do to an image, as plain fields, one function per row of
their tables.

A recipe is data: change a field with `dataclasses.replace(moco_v2(), size=96)`. `recipe.py` carries
them out.
"""

import dataclasses

from cl_jax.views import blur, colour, lab

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR_PIXELS_STD = (0.2470, 0.2435, 0.2616)  # of all pixels; the one above is the mean of images'
CIFAR100_MEAN, CIFAR100_PIXELS_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
SWAV_STD = (0.228, 0.224, 0.225)
CROPS = ("tv", "tf", "byol", "none")
OPERATORS = ("flip", "jitter", "gray", "blur", "solarize")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One view's augmentation. The defaults are a random resized crop and a flip of torchvision at
    224.

    size: side of the square result.
    family: whose operators, "tv" (torchvision / PIL) or "tf" (SimCLR TF / BYOL JAX): grey weights,
      contrast and saturation, antialiasing of the crop, edge of the blur.
    crop: sampler of boxes: "tv" ten tries and a fallback, "tf" sample_distorted_bounding_box,
      "byol" clamped to the image, "none" the whole image resized.
    scale, ratio: area as a share of the image, and width / height.
    interpolation: "bilinear" or "bicubic".
    flip, jitter, gray, blur, solarize: probabilities.
    brightness, contrast, saturation, hue: strengths of the jitter; additive_brightness adds an
      offset, not a factor.
    blur_sigma: range in pixels of the result. blur_radius: None for the authors' own: size // 20 in
      "tf" (224: 23 taps), 6 times the largest sigma in "tv". blur_padding: None for "zero" in "tf",
      "edge" in "tv"; or "reflect".
    solarize_threshold: from here on x becomes 1 - x.
    order: order of the operators after the crop; one that is not in it does not happen.
    colour_space: "rgb", "lab", "ycbcr" or "ydbdr", converted to at the end; `lab.split` makes CMC's
      views of it.
    mean, std: subtracted and divided by last, in units of the colour space; None for neither.
    test_crop: share of the side that the clean test image keeps: 0.875 is 256 -> 224, 1.0 the whole
      image.
    quarter_turns: turn the view by 0, 90, 180 or 270 degrees, each as likely.
    second: probability that a view is of its example's second picture, where the data set has two
      (`views.image`). Two recipes with 0 and 1 make pairs of two pictures always.
    """

    size: int = 224
    family: str = "tv"
    crop: str = "tv"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    flip: float = 0.5
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    additive_brightness: bool = False
    gray: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_radius: int | None = None
    blur_padding: str | None = None
    solarize: float = 0.0
    solarize_threshold: float = 0.5
    order: tuple[str, ...] = OPERATORS
    colour_space: str = "rgb"
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    std: tuple[float, ...] | None = IMAGENET_STD
    test_crop: float = 0.875
    quarter_turns: bool = False
    second: float = 0.5

    def __post_init__(self) -> None:
        _one_of("family", self.family, colour.FAMILIES)
        _one_of("crop", self.crop, CROPS)
        _one_of("interpolation", self.interpolation, ("bilinear", "bicubic"))
        _one_of("colour_space", self.colour_space, lab.SPACES)
        if self.blur_padding is not None:
            _one_of("blur_padding", self.blur_padding, blur.PADDINGS)
        for operator in self.order:
            _one_of("order", operator, OPERATORS)
        if len(set(self.order)) != len(self.order):
            raise ValueError(f"order is {self.order}; expected each operator once at most.")
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size is {self.size!r}; expected a whole number of pixels above 0.")
        for name in (*OPERATORS, "second"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; expected a probability from 0 to 1.")
            if value > 0 and name not in ("flip", "second", *self.order):
                raise ValueError(
                    f"{name} is {value} but order {self.order} has no {name!r}. Add it, or set "
                    f"{name} to 0."
                )
        for name in ("brightness", "contrast", "saturation", "hue"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a strength of 0 or more."
                )
        if self.hue > 0.5:
            raise ValueError(f"hue is {self.hue}; expected at most 0.5, half a turn.")
        for name, top in (("scale", 1.0), ("ratio", float("inf")), ("blur_sigma", float("inf"))):
            low, high = getattr(self, name)
            if not 0 < low <= high <= top:
                raise ValueError(
                    f"{name} is {(low, high)}; expected 0 < low <= high"
                    + (" <= 1, shares of the image's area." if name == "scale" else ".")
                )
        if not 0 < self.test_crop <= 1:
            raise ValueError(
                f"test_crop is {self.test_crop}; expected a share above 0 and up to 1."
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together, or both be None.")

    @property
    def resampling(self) -> str:
        """The name `crop.resampling_matrix` has for this family's interpolation."""
        return (
            "tf_bicubic"
            if self.family == "tf" and self.interpolation == "bicubic"
            else self.interpolation
        )

    @property
    def radius(self) -> int:
        """Of the blur, in pixels."""
        if self.blur_radius is not None:
            return self.blur_radius
        return self.size // 20 if self.family == "tf" else round(6 * self.blur_sigma[1])

    @property
    def padding(self) -> str:
        """What the blur takes outside the image, see `blur.blur_matrix`."""
        return self.blur_padding or ("zero" if self.family == "tf" else "edge")


def _one_of(field: str, value: str, expected: tuple[str, ...]) -> None:
    if value not in expected:
        raise ValueError(f"{field} is {value!r}; expected one of {', '.join(expected)}.")


# SimCLR and BYOL: the "tf" family.


def simclr(size: int = 224, strength: float = 1.0, *, additive_brightness: bool = False) -> Recipe:
    """SimCLR v1 and v2 on ImageNet. `additive_brightness` is the paper's and the first code's; the
    released default multiplies. No normalisation: the network sees [0, 1]. Sigma is drawn per
    image; the authors draw one per core."""
    return Recipe(
        size=size,
        family="tf",
        crop="tf",
        interpolation="bicubic",
        jitter=0.8,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        additive_brightness=additive_brightness,
        gray=0.2,
        blur=0.5,
        mean=None,
        std=None,
    )


def simclr_cifar(
    size: int = 32, strength: float = 0.5, *, additive_brightness: bool = False
) -> Recipe:
    """SimCLR on CIFAR-10: half the colour jitter, no blur; the whole image at test."""
    recipe = simclr(size, strength, additive_brightness=additive_brightness)
    return dataclasses.replace(recipe, blur=0.0, test_crop=1.0)


def byol(view: int = 1, size: int = 224) -> Recipe:
    """BYOL's two recipes: view 1 always blurred, view 2 blurred at 0.1 and solarized at 0.2.
    Normalised, which the authors do inside the network."""
    first = _is_first(view)
    return Recipe(
        size=size,
        family="tf",
        crop="byol",
        interpolation="bicubic",
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        additive_brightness=True,
        gray=0.2,
        blur=1.0 if first else 0.1,
        solarize=0.0 if first else 0.2,
    )


def _is_first(view: int) -> bool:
    if view not in (1, 2):
        raise ValueError(f"view is {view}; expected 1 or 2, the two recipes of the pair.")
    return view == 1


# InstDisc, InvaSpread, MoCo, SimSiam: the "tv" family.


def instdisc(size: int = 224) -> Recipe:
    """InstDisc on ImageNet: grayscale before a jitter that is always on."""
    return Recipe(
        size=size,
        scale=(0.2, 1.0),
        jitter=1.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.4,
        gray=0.2,
        order=("gray", "jitter", "flip"),
    )


def moco_v1(size: int = 224) -> Recipe:
    """MoCo v1: InstDisc's. Also PCL v1."""
    return instdisc(size)


def instdisc_cifar(size: int = 32) -> Recipe:
    """InstDisc on CIFAR-10: jitter, then grayscale, no flip (the authors' code has it commented
    out)."""
    return dataclasses.replace(
        instdisc(size),
        flip=0.0,
        order=("jitter", "gray"),
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        test_crop=1.0,
    )


def invaspread(size: int = 32) -> Recipe:
    """InvaSpread on CIFAR-10 (32) and STL-10 (96), with CIFAR's statistics on both."""
    return dataclasses.replace(instdisc_cifar(size), flip=0.5, order=("jitter", "gray", "flip"))


def mice_cifar(size: int = 32, classes: int = 10) -> Recipe:
    """MiCE on CIFAR-10 and CIFAR-100: MoCo v1's, with each set's own statistics of pixels."""
    if classes not in (10, 100):
        raise ValueError(f"classes is {classes}; expected 10 or 100, the two sets of CIFAR.")
    mean, std = (
        (CIFAR_MEAN, CIFAR_PIXELS_STD) if classes == 10 else (CIFAR100_MEAN, CIFAR100_PIXELS_STD)
    )
    return dataclasses.replace(moco_v1(size), mean=mean, std=std, test_crop=1.0)


def moco_v2(size: int = 224) -> Recipe:
    """MoCo v2, SimSiam and PCL v2."""
    return Recipe(
        size=size,
        scale=(0.2, 1.0),
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        gray=0.2,
        blur=0.5,
        order=("jitter", "gray", "blur", "flip"),
    )


def moco_cifar(size: int = 32) -> Recipe:
    """The authors' CIFAR-10 demo of MoCo: no blur, the smaller crops too."""
    return dataclasses.replace(
        moco_v2(size),
        scale=(0.08, 1.0),
        blur=0.0,
        order=("flip", "jitter", "gray"),
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        test_crop=1.0,
    )


def simsiam(size: int = 224) -> Recipe:
    """SimSiam: MoCo v2's."""
    return moco_v2(size)


def simsiam_cifar(size: int = 32) -> Recipe:
    """SimSiam on CIFAR-10 (appendix D): as on ImageNet without blur."""
    return dataclasses.replace(
        moco_v2(size),
        blur=0.0,
        order=("jitter", "gray", "flip"),
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        test_crop=1.0,
    )


def moco_v3(view: int = 1, size: int = 224, crop_min: float = 0.08) -> Recipe:
    """MoCo v3's two recipes. `crop_min` is 0.08 for ViT, 0.2 for ResNet-50."""
    first = _is_first(view)
    return Recipe(
        size=size,
        scale=(crop_min, 1.0),
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        gray=0.2,
        blur=1.0 if first else 0.1,
        solarize=0.0 if first else 0.2,
        order=("jitter", "gray", "blur", "solarize", "flip"),
    )


# SwAV, DeepCluster v2, DINO: one size each; `multicrop` makes the whole set.


def swav(size: int = 224, scale: tuple[float, float] = (0.14, 1.0)) -> Recipe:
    """SwAV and DeepCluster v2, one size of crop; the red deviation 0.228 is the authors'."""
    return Recipe(
        size=size,
        scale=scale,
        jitter=0.8,
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        gray=0.2,
        blur=0.5,
        order=("flip", "jitter", "gray", "blur"),
        std=SWAV_STD,
    )


def dino(
    crop: str = "global1", size: int | None = None, scale: tuple[float, float] | None = None
) -> Recipe:
    """DINO's crops "global1", "global2" (224) and "local" (96), bicubic."""
    _one_of("crop", crop, ("global1", "global2", "local"))
    large = crop != "local"
    return Recipe(
        size=size or (224 if large else 96),
        scale=scale or ((0.4, 1.0) if large else (0.05, 0.4)),
        interpolation="bicubic",
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        gray=0.2,
        blur={"global1": 1.0, "global2": 0.1, "local": 0.5}[crop],
        solarize=0.2 if crop == "global2" else 0.0,
    )


# CMC: crop, flip, another colour space; `lab.split` cuts the result into the two views.


def cmc_lab(size: int = 224, crop_min: float = 0.2) -> Recipe:
    """CMC's Lab views. `crop_min` is 0.2 for AlexNet and ImageNet-100, 0.08 for ResNets on
    ImageNet."""
    return Recipe(
        size=size, scale=(crop_min, 1.0), colour_space="lab", mean=lab.LAB_MEAN, std=lab.LAB_STD
    )


def cmc_ycbcr(size: int = 224, crop_min: float = 0.2) -> Recipe:
    """CMC's YCbCr views."""
    return Recipe(
        size=size,
        scale=(crop_min, 1.0),
        colour_space="ycbcr",
        mean=lab.YCBCR_MEAN,
        std=lab.YCBCR_STD,
    )


def cmc_ydbdr(size: int = 224, crop_min: float = 0.08) -> Recipe:
    """The authors' later YDbDr views (PyContrast): colour jitter always on before the
    conversion."""
    return Recipe(
        size=size,
        scale=(crop_min, 1.0),
        jitter=1.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        colour_space="ydbdr",
        mean=lab.YDBDR_MEAN,
        std=lab.YDBDR_STD,
    )


# Training of probes and supervised stages.


def crop_flip(size: int = 224) -> Recipe:
    """Random resized crop and flip of the torchvision linear probes."""
    return Recipe(size=size)


def simclr_crop_flip(size: int = 224) -> Recipe:
    """SimCLR's crop and flip for linear evaluation, fine-tuning and distillation."""
    return Recipe(
        size=size,
        family="tf",
        crop="tf",
        interpolation="bicubic",
        mean=None,
        std=None,
        test_crop=0.875 if size > 32 else 1.0,
    )
