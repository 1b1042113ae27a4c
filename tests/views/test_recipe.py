"""Recipes: their published numbers, their keys, their golden images in grey levels, their
errors."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from cl_jax import views
from cl_jax.views import multicrop, presets, recipe
from tests.golden_tables.views import TABLE
from tests.goldens import DIRECTORY, compute, family

RNG = np.random.default_rng(2)
IMAGES = np.asarray(RNG.integers(0, 256, (16, 20, 24, 3)), np.uint8)
IDS = np.arange(16) * 7 + 3
# Every operator on, at a size where the blur has a kernel.
SMALL = dataclasses.replace(presets.simclr(size=12), blur_radius=2, solarize=0.5)


def _keys(ids=IDS, seed=5):
    return views.example_keys(jax.random.key(seed), jnp.asarray(ids))


PIL_FAMILIES = {
    "moco-augv1": presets.moco_v1,
    "moco-augv2": presets.moco_v2,
    "moco-augcifar": presets.moco_cifar,
    "mocov3-aug1": presets.moco_v3,
    "mocov3-aug2": partial(presets.moco_v3, 2),
    "simsiam-aug": presets.simsiam,
    "swav-aug": presets.swav,
    "instdisc-augimagenet": presets.instdisc,
    "instdisc-augcifar": presets.instdisc_cifar,
    "invaspread-augcifar": presets.invaspread,
    "dino-augglobal1": presets.dino,
    "dino-augglobal2": partial(presets.dino, "global2"),
    "dino-auglocal": partial(presets.dino, "local"),
}
# One file of each of these families always, which have every operator, in each family of orders
# (test_published_numbers has the numbers of all), all with -m slow: each is a program to compile.
SHOWN = {"moco-augv1", "moco-augcifar", "mocov3-aug2", "dino-augglobal2"}
PIL_FILES = [
    pytest.param(path, id=path.stem, marks=() if index == 0 and name in SHOWN else pytest.mark.slow)
    for name in PIL_FAMILIES
    for index, path in enumerate(sorted(DIRECTORY.glob(f"{name}-[0-9]*.npz")))
]


@pytest.mark.parametrize("path", PIL_FILES)
def test_pil_pipelines_within_grey_levels(path):
    """The authors' transforms round to 8 bits after every operator: within 5 grey levels in the
    mean, 30 everywhere."""
    with jax.enable_x64(True):
        ours, theirs = compute(TABLE[family(path)], path, np.dtype("float64"))
    levels = (
        np.abs(ours["out"] - theirs["out"]) * 255 * np.asarray(PIL_FAMILIES[family(path)]().std)
    )
    assert levels.mean() <= 5 and levels.max() <= 30


# scale, jitter probability and strengths, gray, blur, solarize, order of operators after the crop.
@pytest.mark.parametrize(
    "made, expected",
    [
        (presets.instdisc(), ((0.2, 1), 1.0, (0.4, 0.4, 0.4, 0.4), 0.2, 0, 0, "gray jitter flip")),
        (presets.moco_v1(), ((0.2, 1), 1.0, (0.4, 0.4, 0.4, 0.4), 0.2, 0, 0, "gray jitter flip")),
        (presets.instdisc_cifar(), ((0.2, 1), 1.0, (0.4, 0.4, 0.4, 0.4), 0.2, 0, 0, "jitter gray")),
        (
            presets.invaspread(),
            ((0.2, 1), 1.0, (0.4, 0.4, 0.4, 0.4), 0.2, 0, 0, "jitter gray flip"),
        ),
        (
            presets.moco_v2(),
            ((0.2, 1), 0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0.5, 0, "jitter gray blur flip"),
        ),
        (
            presets.simsiam(),
            ((0.2, 1), 0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0.5, 0, "jitter gray blur flip"),
        ),
        (
            presets.moco_cifar(),
            ((0.08, 1), 0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0, 0, "flip jitter gray"),
        ),
        (
            presets.simclr(),
            ((0.08, 1), 0.8, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0, "flip jitter gray blur"),
        ),
        (
            presets.simclr_cifar(),
            ((0.08, 1), 0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0, 0, "flip jitter gray"),
        ),
        (
            presets.byol(1),
            ((0.08, 1), 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 1.0, 0, "flip jitter gray blur"),
        ),
        (
            presets.byol(2),
            ((0.08, 1), 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2, "flip jitter gray blur solarize"),
        ),
        (
            presets.moco_v3(1, crop_min=0.2),
            ((0.2, 1), 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 1.0, 0, "jitter gray blur flip"),
        ),
        (
            presets.moco_v3(2),
            ((0.08, 1), 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2, "jitter gray blur solarize flip"),
        ),
        (
            presets.swav(),
            ((0.14, 1), 0.8, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0, "flip jitter gray blur"),
        ),
        (
            multicrop.swav()[-1],
            ((0.05, 0.14), 0.8, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0, "flip jitter gray blur"),
        ),
        (
            presets.dino("global1"),
            ((0.4, 1), 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 1.0, 0, "flip jitter gray blur"),
        ),
        (
            presets.dino("global2"),
            ((0.4, 1), 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2, "flip jitter gray blur solarize"),
        ),
        (
            presets.dino("local"),
            ((0.05, 0.4), 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.5, 0, "flip jitter gray blur"),
        ),
        (presets.cmc_lab(), ((0.2, 1), 0, (0, 0, 0, 0), 0, 0, 0, "flip")),
        (presets.cmc_ydbdr(), ((0.08, 1), 1.0, (0.4, 0.4, 0.4, 0.1), 0, 0, 0, "flip jitter")),
    ],
)
def test_published_numbers(made, expected):
    scale, jitter, strengths, gray, blur, solarize, order = expected
    assert (made.scale, made.jitter, made.gray, made.blur, made.solarize) == (
        scale,
        jitter,
        gray,
        blur,
        solarize,
    )
    np.testing.assert_allclose(
        (made.brightness, made.contrast, made.saturation, made.hue), strengths
    )
    assert " ".join(name for name in made.order if getattr(made, name) > 0) == order


def test_kernels_of_the_blur():
    assert (
        presets.simclr().radius == presets.byol().radius == 11
        and presets.simclr().padding == "zero"
    )
    assert dataclasses.replace(presets.simclr(), size=96).radius == 4  # follows the size
    assert presets.moco_v2().radius == 12 and presets.moco_v2().padding == "edge"


def test_views_follow_the_example_not_its_place():
    run = jax.jit(partial(recipe.apply, SMALL))
    whole = np.asarray(run(_keys(), IMAGES))
    assert (
        whole.shape == (16, 12, 12, 3)
        and whole.dtype == np.float32
        and whole.min() >= 0
        and whole.max() <= 1
    )
    order = RNG.permutation(16)
    np.testing.assert_array_equal(run(_keys(IDS[order]), IMAGES[order]), whole[order])
    assert np.abs(whole - run(_keys(seed=6), IMAGES)).max() > 0.1


@pytest.mark.parametrize(
    "made",
    [
        dataclasses.replace(SMALL, jitter=0.0, gray=0.0, blur=0.0, solarize=0.0),
        pytest.param(SMALL, marks=pytest.mark.slow),
    ],
    ids=["crop and flip", "every operator"],
)
def test_views_do_not_depend_on_the_size_of_the_batch(made):
    run = jax.jit(partial(recipe.apply, made))
    half = run(_keys(IDS[5:9]), IMAGES[5:9])
    np.testing.assert_allclose(half, run(_keys(), IMAGES)[5:9], atol=1e-6)


@pytest.mark.slow
def test_views_are_the_same_on_any_number_of_devices():
    def step(ids, images):
        return jnp.stack(
            recipe.augment([SMALL, SMALL], views.example_keys(jax.random.key(5), ids), images), 1
        )

    whole = np.asarray(jax.jit(step)(IDS, IMAGES))
    for n in (2, 8):
        mesh = jax.make_mesh(
            (n,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n]
        )
        split = PartitionSpec("devices")
        mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=split, out_specs=split))(
            IDS, IMAGES
        )
        np.testing.assert_allclose(mapped, whole, atol=1e-6)


@pytest.mark.slow
def test_augment_numbers_its_views():
    keys = _keys()
    other = dataclasses.replace(SMALL, size=8)
    a, b, c, d = jax.jit(partial(recipe.augment, [SMALL, other, SMALL, SMALL]))(keys, IMAGES)
    assert a.shape[1:3] == c.shape[1:3] == (12, 12) and b.shape[1:3] == (8, 8)
    folded = [jax.vmap(lambda key: jax.random.fold_in(key, number))(keys) for number in range(4)]
    run = jax.jit(partial(recipe.apply, SMALL))
    for number, view in ((0, a), (2, c), (3, d)):
        np.testing.assert_allclose(run(folded[number], IMAGES), view, atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(partial(recipe.apply, other))(folded[1], IMAGES), b, atol=1e-6
    )
    assert np.abs(a - c).max() > 0.1 and np.abs(c - d).max() > 0.1


def test_multicrop_sets():
    crops = multicrop.swav()
    assert [made.size for made in crops] == [224] * 2 + [96] * 6 and len(set(crops)) == 2
    assert [made.size for made in multicrop.dino()] == [224] * 2 + [96] * 8 and len(
        set(multicrop.dino())
    ) == 3
    assert multicrop.by_size([np.zeros((2, s, s, 3)) for s in (8, 8, 4, 4, 4)]) == [
        [0, 1],
        [2, 3, 4],
    ]
    with pytest.raises(ValueError, match="2 sizes, 1 counts"):
        multicrop.swav(counts=(2,))


def test_probabilities_of_what_is_drawn():
    made = dataclasses.replace(presets.byol(2), flip=0.3)
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.device_get(jax.jit(jax.vmap(lambda key: recipe.draw(made, key, 40, 50)))(keys))
    for name in ("flip", "jitter", "gray", "blur", "solarize"):
        assert abs(getattr(drawn, name).mean() - getattr(made, name)) < 0.03, name
    assert (
        0.1 <= drawn.sigma.min()
        and drawn.sigma.max() <= 2.0
        and abs(drawn.sigma.mean() - 1.05) < 0.04
    )
    columns = np.stack(
        [
            drawn.flip,
            drawn.jitter,
            drawn.gray,
            drawn.blur,
            drawn.solarize,
            drawn.sigma,
            drawn.factors[:, 0],
            drawn.box[:, 2],
        ]
    ).astype(np.float64)
    independent = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(independent).max() < 0.07


def test_any_number_of_channels():
    made = dataclasses.replace(
        presets.moco_v2(8), saturation=0.0, hue=0.0, gray=0.0, mean=None, std=None
    )
    keys, five = _keys()[:2], np.asarray(RNG.integers(0, 256, (2, 9, 9, 5)), np.uint8)
    assert jax.eval_shape(partial(recipe.apply, made), keys, five).shape == (2, 8, 8, 5)
    grey = dataclasses.replace(presets.simclr(8), blur_radius=1)
    one = jax.eval_shape(partial(recipe.apply, grey), keys, five[..., :1])
    assert one.shape == (2, 8, 8, 1)


def test_evaluate():
    plain = jax.jit(partial(recipe.evaluate, presets.moco_cifar(20)))(IMAGES[:, :, :20])
    expected = (IMAGES[:, :, :20] / 255 - np.array(presets.CIFAR_MEAN)) / np.array(
        presets.CIFAR_STD
    )
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    for made in (
        presets.moco_v2(14),
        presets.simclr(14),
        presets.cmc_lab(14),
    ):
        out = jax.jit(partial(recipe.evaluate, made))(IMAGES)
        assert out.shape == (16, 14, 14, 3) and np.isfinite(out).all()
    constant = np.full((1, 30, 40, 3), 51, np.uint8)
    np.testing.assert_allclose(
        jax.jit(partial(recipe.evaluate, presets.simclr(14)))(constant), 0.2, atol=1e-6
    )


def test_make():
    assert recipe.of_section("simclr_cifar") == presets.simclr_cifar()
    ten, hundred = (
        recipe.of_section({"name": "mice_cifar", "classes": classes}) for classes in (10, 100)
    )
    assert ten.mean == presets.CIFAR_MEAN and hundred.mean == presets.CIFAR100_MEAN
    assert ten.order == presets.moco_v1().order and ten.std == presets.CIFAR_PIXELS_STD
    made = recipe.of_section(
        {"name": "simclr", "size": 96, "strength": 0.5, "gray": 0.1, "scale": [0.2, 1.0]}
    )
    assert made == dataclasses.replace(
        presets.simclr(96, 0.5), gray=0.1, scale=(0.2, 1.0)
    ) and hash(made)
    assert recipe.of_section({"size": 32}) == views.Recipe(size=32)
    for section, message in (
        ("simclr_cifra", "not known; did you mean 'simclr_cifar'"),
        ({"name": "simclr", "strenght": 1.0}, "no field 'strenght'; did you mean 'strength'"),
        ({"jiter": 0.5}, "no field 'jiter'; did you mean 'jitter'"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.of_section(section)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"family": "kornia"}, "family is 'kornia'; expected one of tv, tf"),
        ({"crop": "center"}, "crop is 'center'"),
        ({"gray": 1.2}, "gray is 1.2; expected a probability"),
        ({"scale": (0.5, 0.2)}, "expected 0 < low <= high <= 1"),
        ({"scale": (0.0, 1.0)}, "expected 0 < low"),
        ({"size": 0}, "size is 0"),
        ({"hue": 0.6}, "half a turn"),
        ({"order": ("flip", "rotate")}, "order is 'rotate'"),
        ({"order": ("flip", "flip")}, "each operator once"),
        ({"order": ("flip",), "gray": 0.2}, "has no 'gray'"),
        ({"mean": None}, "given together"),
        ({"contrast": -0.1}, "strength of 0 or more"),
        ({"test_crop": 0.0}, "test_crop is 0.0"),
    ],
)
def test_a_recipe_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        views.Recipe(**change)


def test_bad_images_and_keys():
    keys = _keys()
    for images, message in (
        (IMAGES.astype(np.float32), "expected uint8"),
        (IMAGES[0], "expected uint8"),
        (IMAGES[:3], r"for 3 images; expected one typed key"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.apply(SMALL, keys, images)
    with pytest.raises(ValueError, match="expected one typed key per example"):
        recipe.augment([SMALL], jax.random.key_data(keys), IMAGES)
    with pytest.raises(ValueError, match="defined for 1 or 3 channels; the images have 2"):
        jax.eval_shape(partial(recipe.apply, SMALL), keys, IMAGES[..., :2])
    with pytest.raises(ValueError, match="values for images of 1 channels"):
        jax.eval_shape(partial(recipe.apply, presets.moco_cifar(8)), keys, IMAGES[..., :1])
    with pytest.raises(ValueError, match="ids has dtype float"):
        views.example_keys(jax.random.key(0), jnp.ones(3))
    with pytest.raises(ValueError, match="wrap_key_data"):
        views.example_keys(jax.random.PRNGKey(0), jnp.arange(3))
