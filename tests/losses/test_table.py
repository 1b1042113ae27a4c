"""Promises that all public losses and memories share, held over one table of them: what is refused,
and with which words; zero rows give finite values and gradients; float32 products are asked for in
float32."""

import importlib
import inspect
import itertools
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cl_jax.losses
from cl_jax import memory
from cl_jax.cluster import dbscan, whitening
from cl_jax.heads.prototypes import Prototypes
from cl_jax.heads.weight_norm import WeightNormDense
from cl_jax.losses import calm, nce
from cl_jax.memory import bank, centre, crop_queue, hybrid, prototypes, queue

SIZES = {
    "b": 6,
    "d": 5,
    "k": 7,
    "n": 9,
    "m": 8,
    "v": 3,
    "a": 2,
    "t": 4,
    "s": 2,
    "u": 3,
    "e": 2,
    "c": 4,
    "h": 3,
    "w": 2,
    "l": 11,
    "g": 6,
    "r": 3,
    "y": 10,
    "x": 4,
    "i": 5,
}
NORMALIZER = nce.init_normalizer()


def public(family: str) -> dict[str, Any]:
    """Functions and records that a module of losses defines."""
    module = importlib.import_module(f"cl_jax.losses.{family}")
    return {
        name: x
        for name, x in vars(module).items()
        if name[0] != "_" and getattr(x, "__module__", None) == module.__name__
    }


FAMILIES = {family: public(family) for family in cl_jax.losses.FAMILIES}
losses = SimpleNamespace(**{name: x for names in FAMILIES.values() for name, x in names.items()})


class Row(NamedTuple):
    """f(**arrays, **knobs). arrays: name: letters of its axes, "*" before them for integers."""

    f: object
    arrays: dict[str, str]
    knobs: dict


def row(f, arrays: str, **knobs) -> Row:
    """arrays: "z_a b d, labels *b": names and axes. Numbers are sizes themselves."""
    return Row(f, dict(text.strip().split(" ", 1) for text in arrays.split(",")), knobs)


def of_clustering(f):
    def loss(q, prototypes, concentration, assignment, negatives, **knobs):
        clustering = losses.Clustering(prototypes, concentration, assignment, negatives)
        return f(q, clustering, **knobs)

    loss.__signature__, loss.__name__ = inspect.signature(f), f.__name__
    return loss


def pcl(
    q, k, queue, prototypes, concentration, assignment, negatives, *, temperature, axis_name=None
):
    clustering = losses.Clustering(prototypes, concentration, assignment, negatives)
    return losses.pcl(q, k, queue, [clustering], temperature=temperature, axis_name=axis_name)


def mixed(f):
    def loss(weight, partner, **rest):
        return f(**rest, mix=losses.Mix(weight, partner))

    loss.__signature__, loss.__name__ = inspect.signature(f), f.__name__
    return loss


def deepcluster_v2(scores, assignments, *, temperature, axis_name=None):
    return losses.deepcluster_v2(
        [scores], [assignments], temperature=temperature, axis_name=axis_name
    )


def two_normalizers(f):
    return partial(f, normalizers=(NORMALIZER, NORMALIZER))


def spcl_update(rows_of_the_memory, rows, ids, *, momentum, chain):
    held = hybrid.HybridMemory(rows_of_the_memory, jnp.arange(rows_of_the_memory.shape[0]))
    return hybrid.update(held, rows, ids, momentum=momentum, chain=chain).rows


def enqueue(queue_rows, rows):
    return queue.enqueue(
        queue.Queue(queue_rows, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)), rows
    ).rows


T = {"temperature": 0.2}
PAIR, CLUSTERING = (
    "z_a b d, z_b b d",
    "prototypes c d, concentration c, assignment *b, negatives *r",
)
STUDY = "queries b d, keys m d, positive *b"
BANK = "query b d, bank n d, indices *b u"
TWO_BANKS = "z_a b d, z_b b d, bank_a n d, bank_b n d, indices *b u"
TWO_QUEUES = (
    "q_a b d, q_b b d, k_a b d, k_b b d, queue_a k d, queue_b k d, jigsaw_a b d, jigsaw_b b d"
)
MICE = "f b e d, v b e d, queue k e d, experts e d"
SIAMESE = "p_a b d, p_b b d, z_a b d, z_b b d"
CPC, GRID = "p 2 b t d, z b t d", "p 2 b t w d, z b t w d"
TOKENS = "logits b t k, labels *b t"
ROWS = [
    row(losses.contrast, "queries b d, keys k d", scale=2.0),
    row(
        losses.pair_sums, "queries b d, keys k d", scale=2.0, term=lambda s, rows, cols: jnp.tanh(s)
    ),
    *(
        row(f, PAIR, **T)
        for f in (
            losses.nt_xent,
            losses.nt_xent_rows,
            losses.nt_xent_logits,
            losses.inva_spread,
            losses.hcl,
            losses.hcl_terms,
            losses.graphcl,
            losses.graphcl_rows,
            losses.cosine_logits,
        )
    ),
    *(row(f, "z v b d", **T) for f in (losses.nt_xent_views, losses.nt_xent_views_rows)),
    *(
        row(f, f"queries b d, keys b d, negatives {axes}", **T, in_batch=in_batch)
        for f, axes, in_batch in itertools.product(
            (losses.info_nce, losses.info_nce_rows), ("k d", "b k d"), (False, True)
        )
    ),
    row(losses.info_nce, "queries b d, keys b d, negatives n d, own *b", **T),
    row(losses.info_nce, "queries b d, keys b d", **T, symmetric=True),
    *(
        row(f, "q_a b d, q_b b d, k_a b d, k_b b d", **T)
        for f in (losses.moco_v3, losses.moco_v3_rows)
    ),
    row(losses.n_pair, "queries b d, keys b d", l2_weight=0.1),
    *(row(f, "image b d, text b d", logit_scale=10.0) for f in (losses.clip, losses.clip_rows)),
    row(losses.clip_logits, "image b d, text k d", logit_scale=10.0),
    *(
        row(f, "image b d, text b d", logit_scale=10.0, logit_bias=-1.0)
        for f in (losses.siglip, losses.siglip_rows)
    ),
    *(
        row(f, f"features b v d, {what}", **T)
        for f in (losses.supcon, losses.supcon_rows)
        for what in ("labels *b", "mask b b")
    ),
    row(losses.supcon, "features b v d, labels *b", **T, summation="inside", contrast_mode="one"),
    row(
        losses.supcon,
        "features b v d, labels *b",
        **T,
        summation="inside",
        denominator="one_positive",
        positives_cap=3,
    ),
    row(losses.supcon_rows, "features b v d, labels *b", **T, denominator="only_negatives"),
    row(losses.stablerep, "features b d, labels *b", **T),
    row(losses.kcl, "q b d, k b d, queue k d, labels *b, queue_labels *k", **T),
    row(
        losses.kcl,
        "q b d, k b d, queue k d, labels *b, queue_labels *k, selected *b k",
        **T,
        unselected="zero",
    ),
    row(losses.kcl_in_batch, "features b 1 d, labels *b, selected *b b", **T),
    row(
        losses.tsc,
        "q b d, k b d, queue k d, labels *b, queue_labels *k, targets c d, assignment *c",
        **T,
    ),
    row(losses.tsc_centroids, "centroids c d, features b d, labels *b"),
    row(losses.hardest_negatives, "queries b d, queue k d", num_hard=2),
    row(losses.mix_negatives, "queue k d, hardest *b u, pairs *b s 2, alpha b s"),
    row(losses.mix_with_query, "queries b d, queue k d, hardest *b u, picks *b s, beta b s"),
    *(
        row(f, "q b d, k b d, queue k d, synthetic b s d", **T)
        for f in (losses.mochi, losses.mochi_rows, losses.mochi_logits)
    ),
    row(losses.select_hard, "similarity b m, positive *b", num_hard=2),
    *(row(f, STUDY, negative_weight=0.5) for f in (losses.simple, losses.simple_rows)),
    *(
        row(f, STUDY, negative_weight=0.5, num_hard=2)
        for f in (losses.hard_simple, losses.hard_simple_rows)
    ),
    *(
        row(f, STUDY, **T, num_hard=num_hard)
        for f in (losses.hard_contrastive, losses.hard_contrastive_rows)
        for num_hard in (2, None)
    ),
    row(losses.alignment, "x b d, y b d", alpha=2.0),
    row(losses.alignment, "x b d, y b d", alpha=1.0),
    row(losses.uniformity, "x b d, queue k d", t=2.0),
    row(losses.align_uniform, "x b d, y b d", t=2.0, alpha=2.0),
    row(
        losses.align_uniform_moco,
        "q b d, k b d, queue k d",
        t=2.0,
        alpha=2.0,
        contrast_weight=1.0,
        **T,
    ),
    row(losses.tolerance, "features b d, labels *b"),
    row(losses.effective_rank, "features b d"),
    row(losses.negative_hardness, "similarity b m, positive *b", **T),
    *(row(f, BANK, **T) for f in (losses.bank_logits, losses.bank_softmax)),
    row(losses.bank_softmax, f"{BANK}, jigsaw b d", **T),
    row(partial(nce.nce, normalizer=NORMALIZER), BANK, **T),
    row(losses.queue_logits, "query b d, key b d, queue k d", **T),
    row(
        partial(losses.queue_nce, normalizer=NORMALIZER),
        "query b d, key b d, queue k d",
        **T,
        num_data=20,
    ),
    row(partial(losses.nce_of_logits, normalizer=NORMALIZER), "logits b k", num_data=20),
    row(two_normalizers(losses.cross_nce), TWO_BANKS, **T),
    row(
        two_normalizers(losses.crd),
        "z_student b d, z_teacher b d, bank_student n d, bank_teacher n d, indices *b u",
        **T,
    ),
    row(losses.cross_bank_softmax, f"{TWO_BANKS}, jigsaw_a b d, jigsaw_b b d", **T),
    row(losses.full_bank_softmax, "query b d, bank n d, ids *b", **T),
    row(losses.queue_softmax, "query b d, key b d, queue k d, jigsaw b d", **T),
    row(losses.cross_queue_softmax, TWO_QUEUES, **T),
    row(of_clustering(losses.proto_logits), f"q b d, {CLUSTERING}"),
    row(of_clustering(losses.proto_nce), f"q b d, {CLUSTERING}", mask_duplicates=True),
    row(pcl, f"q b d, k b d, queue k d, {CLUSTERING}", **T),
    *(row(f, f"{MICE}, g b d, gates e d", **T) for f in (losses.mice, losses.mice_terms)),
    row(losses.mice_logits, MICE, **T),
    row(losses.expert_sums, "posterior b e, v b e d"),
    row(losses.expert_prototypes, "sums e d"),
    row(losses.label_logits, "f b d, memory n d, labels *n", **T, num_labels=4),
    row(losses.spcl, "f b d, memory n d, labels *n, ids *b", **T, num_labels=4),
    *(
        row(f, "student_logits b c, teacher_logits b c", **T)
        for f in (losses.soft_label_rows, losses.knowledge_distillation)
    ),
    row(losses.soft_labels, "student_logits b c, teacher_logits b c, labels *b", **T, alpha=0.5),
    row(losses.embed, "features b i, kernel i d, bias d"),
    *(row(f, SIAMESE) for f in (losses.byol, losses.simsiam)),
    *(row(f, "p b d, z b d") for f in (losses.byol_rows, losses.simsiam_rows)),
    row(losses.fastsiam, "p v b d, z v b d"),
    row(
        losses.dino,
        "student v b k, teacher a b k, centre k",
        student_temperature=0.1,
        teacher_temperature=0.05,
    ),
    row(losses.swapped_cross_entropy, "log_p v b k, targets 2 b k", owners=(0, 1)),
    row(losses.swav, "scores v b k, codes a b k", **T),
    row(
        losses.swav_codes,
        "scores a b k, queue a l d, prototypes k d",
        filled=True,
        epsilon=0.05,
        iterations=3,
    ),
    row(losses.sinkhorn, "scores b k, queued l k", epsilon=0.05, iterations=3),
    row(deepcluster_v2, "scores v b k, assignments *b", **T),
    row(losses.cross_entropy, "logits b k, labels *b"),
    row(losses.predictions, "c b t i, w v d i"),
    *(
        row(f, CPC, scale=0.5, exclude_own=own)
        for f in (losses.cpc, losses.cpc_steps)
        for own in (False, True)
    ),
    *(
        row(f, f"{CPC}, negatives *b u 2", scale=0.5)
        for f in (losses.cpc, losses.cpc_steps, losses.cpc_logits)
    ),
    *(row(f, GRID, scale=0.5, offsets=(1, 2)) for f in (losses.cpc_grid, losses.cpc_grid_steps)),
    *(
        row(f, "local b l d, summary b s d")
        for f in (losses.dim_divergence, losses.dim_infonce, losses.dim_donsker_varadhan)
    ),
    *(row(f, "z b d, proxies c d, labels *b", **T) for f in (losses.two_c, losses.two_c_rows)),
    row(
        losses.contragan_discriminator,
        "d_real k, d_fake r, z_real b d, proxies c d, labels_real *b",
        **T,
        weight=1.0,
    ),
    row(
        losses.contragan_generator,
        "d_fake k, z_fake b d, proxies c d, labels_fake *b",
        **T,
        weight=1.0,
    ),
    *(
        row(f, "d_real b, d_fake k")
        for f in (
            losses.hinge_discriminator,
            losses.logistic_discriminator,
            losses.least_squares_discriminator,
        )
    ),
    *(
        row(f, "d_fake k")
        for f in (losses.hinge_generator, losses.logistic_generator, losses.least_squares_generator)
    ),
    *(
        row(f, "local n d, summary g d, graph_id *n", hard=hard)
        for f in (losses.infograph, losses.infograph_expectations)
        for hard in (False, True)
    ),
    row(mixed(losses.imix_n_pair), "q b d, k b d, weight b, partner *b", **T),
    row(mixed(losses.imix_moco), "q b d, k b d, queue k d, weight b, partner *b", **T),
    row(mixed(losses.imix_byol), "p b d, k b d, weight b, partner *b"),
    row(losses.imix_logits, "q b d, k b d, queue k d", **T),
    row(mixed(losses.mix_inputs), "x b t t 3, weight b, partner *b"),
    row(losses.input_mix, "x b t t, raw b 3, partners *2 b"),
    *(row(f, f"{PAIR}, hard_negatives b d", **T) for f in (losses.simcse, losses.simcse_logits)),
    *(
        row(f, "q h b d, k h h b d, queues h n d", **T)
        for f in (losses.leave_one_out, losses.leave_one_out_rows)
    ),
    row(losses.support_set, "t b d, v b d, video_id *b, memory k d", **T),
    *(
        row(f, "t b d, v b d, video_id *b", margin=0.2)
        for f in (losses.ranking_loss, losses.ranking_rows)
    ),
    row(losses.max_margin, "similarity b b", margin=0.2),
    row(losses.similarity_info_nce, "similarity b b"),
    *(
        row(f, TOKENS)
        for f in (
            losses.token_log_likelihood,
            losses.token_cross_entropy,
            losses.caption_loss,
            losses.caption_rows,
        )
    ),
    row(
        calm.calm,
        "logits_gen b t k, labels_gen *b t, logits_dis b x y, labels_dis *b x",
        weight_gen=1.0,
        weight_dis=1.0,
    ),
    row(losses.shift_right, "labels *b t", pad_id=0),
    *(row(f, PAIR) for f in (losses.vicreg, losses.vicreg_terms, losses.barlow_twins)),
    row(losses.cross_correlation, PAIR, local_moments=True),
    row(losses.feature_covariance, "z b d"),
    *(
        row(f, "h v b d, permutations *s b", group_size=6, eps=0.1)
        for f in (losses.w_mse, losses.whiten)
    ),
    *(row(f, PAIR, **T) for f in (losses.dcl, losses.dcl_rows, losses.dclw, losses.dclw_rows)),
    row(losses.dclw, PAIR, **T, detach_weights=False),
    row(losses.dclw_weights, PAIR),
    row(losses.nearest_neighbours, "z b d, queue k d"),
    *(
        row(f, "p_a b d, p_b b d, neighbours_a b d, neighbours_b b d", **T, form=form)
        for f in (losses.nnclr, losses.nnclr_rows)
        for form in ("rows", "both", "nt_xent")
    ),
    row(losses.mae, "prediction b l d, target b l d, mask b l"),
    row(losses.simmim, "prediction b 4 4 c, images b 4 4 c, mask b 2 2"),
    row(losses.patchify, "images b x x c", patch=2),
    row(losses.unpatchify, "patches b x 8", patch=2, height=4, width=4),
    row(losses.normalise_patches, "patches b l d"),
    row(losses.pixel_shuffle, "x b h w 8", stride=2),
    row(
        losses.ibot_patches,
        "student s b l k, teacher s b l k, mask s b l, centre k",
        student_temperature=0.1,
        teacher_temperature=0.05,
    ),
    row(
        losses.patch_distillation,
        "student s b l k, targets s b l k, mask s b l",
        student_temperature=0.1,
    ),
    *(row(f, "x b d") for f in (losses.koleo, losses.koleo_neighbours)),
    *(
        row(f, "x b d, directions d k", t_max=3.0)
        for f in (losses.sigreg, losses.sigreg_statistics)
    ),
    *(row(f, "z v b d, directions d k", t_max=3.0) for f in (losses.lejepa, losses.lejepa_terms)),
    row(cl_jax.losses.unit, "x b d"),
    row(bank.update, "bank n d, rows b d, ids *b", momentum=0.5),
    *(
        row(spcl_update, "rows_of_the_memory n d, rows b d, ids *b", momentum=0.2, chain=chain)
        for chain in (True, False)
    ),
    row(hybrid.class_means, "features n d, labels *n", num_classes=4),
    row(centre.update, "centre k, teacher_logits a b k", momentum=0.9),
    row(crop_queue.push, "queue a l d, z a b d"),
    row(enqueue, "queue_rows n d, rows b d"),
    row(prototypes.normalise, "rows n d"),
]
# Not functions of checked arrays: rules of a tile, draws, sizes, functions of functions; and what
# takes what a loss made.
OTHERS = {
    "check_plan",
    "separate_unlabelled",
    "side_of_tile",
    "allow",
    "not_self",
    "row_ids",
    "same_example",
    "same_id",
    "same_label",
    "clamp_log_scale",
    "core_view",
    "full_graph",
    "adversarial_view",
    "adversarial_contrast",
    "local_features",
    "local_losses",
    "local_units",
    "draw_cutmix",
    "draw_directions",
    "draw_permutations",
    "draw_indices",
    "draw_mixtures",
    "draw_mixup",
    "draw_positives",
    "draw_prototypes",
    "sample_negatives",
    "offset_negatives",
    "permuted_negatives",
    "positive_draws",
    "in_batch_positives",
    "first_positives",
    "same_class",
    "kcl_targets",
    "cutmix_box",
    "own_share",
    "expectations",
    "init_normalizer",
    "probabilities",
    "label_log_probabilities",
    "mice_of_terms",
    "simplex",
    "teacher_temperature",
    "token_counts",
    "calm",
    "nce",
    "nce_chance",
}
# Of any rank, or of a rank that says what is meant.
ANY_RANK = {
    ("predictions", "c"),
    ("normalise", "rows"),
    "teacher_logits",
    "queue_rows",
    "features",
    "x",
    "negatives",
    ("normalise_patches", "patches"),
}
# Booleans as well as numbers; a queue of anything.
ANY_TYPE = {"mask", "selected", "queue_rows"}
# Of the type they were given: memories, mixed inputs, a threshold among given similarities.
KEEPS_TYPE = {
    "update",
    "spcl_update",
    "class_means",
    "push",
    "enqueue",
    "normalise",
    "mix_inputs",
    "input_mix",
    "tsc_centroids",
    "select_hard",
    "nearest_neighbours",
    "patchify",
    "unpatchify",
    "pixel_shuffle",
}


SHARES = {"concentration", "weight", "raw", "posterior", "mask", "alpha", "beta"}


def name_of(f) -> str:
    return getattr(f, "__name__", None) or f.func.__name__


def _of_a_loss(given: Row) -> bool:
    """The rows, terms or steps of a loss that has a row of its own."""
    whole, _, part = name_of(given.f).rpartition("_")
    return part in ("rows", "terms", "steps") and any(name_of(row.f) == whole for row in ROWS)


def _id(index: int) -> str:
    return f"{name_of(ROWS[index].f)}-{index}"


EACH = pytest.mark.parametrize("index", range(len(ROWS)), ids=_id)
# A loss's rows are traced with it; by themselves with `-m slow`.
EACH_WHOLE = pytest.mark.parametrize(
    "index",
    [
        pytest.param(i, marks=[pytest.mark.slow] if _of_a_loss(row) else [])
        for i, row in enumerate(ROWS)
    ],
    ids=_id,
)
# A loss's rows and logits are compiled with it; by themselves with `-m slow`.
EACH_COMPILED = pytest.mark.parametrize(
    "index",
    [
        pytest.param(
            i,
            marks=[pytest.mark.slow]
            if name_of(row.f).endswith(("_rows", "_terms", "_steps", "_logits"))
            else [],
        )
        for i, row in enumerate(ROWS)
    ],
    ids=_id,
)


def size(letter: str) -> int:
    return int(letter) if letter.isdigit() else SIZES[letter]


def made(axes: str, seed: int) -> np.ndarray:
    rng, shape = np.random.default_rng(seed), [size(letter) for letter in axes.strip("*").split()]
    return (
        rng.integers(0, 3, shape).astype(np.int32)
        if axes[0] == "*"
        else rng.normal(size=shape).astype(np.float32)
    )


def arrays_of(given: Row) -> dict[str, np.ndarray]:
    arrays = {name: made(axes, seed) for seed, (name, axes) in enumerate(given.arrays.items())}
    for name in ("mask", "concentration", "weight", "raw", "posterior"):
        if name in arrays:
            arrays[name] = np.abs(arrays[name]) + 0.1
    if "permutations" in arrays:
        shape = arrays["permutations"].shape
        order = np.argsort(np.random.default_rng(0).normal(size=shape), axis=-1)
        arrays["permutations"] = order.astype(np.int32)
    return arrays


def run(given: Row, arrays, **changed):
    return given.f(**arrays, **given.knobs | changed)


def refused(given: Row, what: str, arrays, **changed) -> str:
    """The words of the ValueError that tracing raises."""
    try:
        jax.eval_shape(lambda arrays: run(given, arrays, **changed), arrays)
    except ValueError as error:
        text = str(error)
        assert "expected" in text or "is not mapped here" in text, f"{what}: {text}"
        return text
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    raise AssertionError(f"{what} passes")


def test_each_name_is_in_one_family():
    names = [name for family in FAMILIES.values() for name in family]
    assert len(names) == len(set(names))
    found = {path.stem for path in Path(cl_jax.losses.__file__).parent.glob("[a-z]*.py")}
    assert found - {"agents"} == set(FAMILIES)  # of reinforcement learning; imported by its name


def test_the_top_has_headline_losses_and_says_where_the_others_are():
    top = cl_jax.losses
    functions = {name for name in top.__all__ if inspect.isfunction(getattr(top, name))}
    assert 20 <= len(functions) <= 30
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`", top.__doc__))))
    assert functions - {"unit"} <= words
    with pytest.raises(AttributeError, match=r"Use losses\.hardness\.mochi\."):
        _ = top.mochi
    with pytest.raises(AttributeError, match=r"Use from cl_jax\.losses\.contrast import same_id\."):
        _ = top.same_id
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"):
        _ = top.nothing


def test_every_loss_has_a_row():
    covered = {name_of(each.f) for each in ROWS}
    public = {name for name, x in vars(losses).items() if not isinstance(x, type)}
    assert public - covered - OTHERS == set()
    assert OTHERS - public == set()
    assert set(memory.__all__) == {
        "bank",
        "centre",
        "crop_queue",
        "hybrid",
        "prototypes",
        "queue",
        "HybridMemory",
        "Queue",
    }


@EACH
def test_refuses_wrong_shapes_and_types(index):
    given = ROWS[index]
    arrays = arrays_of(given)
    jax.eval_shape(lambda arrays: run(given, arrays), arrays)
    letters = {name: axes.strip("*").split() for name, axes in given.arrays.items()}
    for name, axes in given.arrays.items():
        x = arrays[name]
        if name not in ANY_RANK and (name_of(given.f), name) not in ANY_RANK:
            assert name in refused(
                given, f"{name} without its last axis", arrays | {name: x[..., 0]}
            )
            assert name in refused(given, f"{name} with one axis more", arrays | {name: x[None]})
        for axis, letter in enumerate(letters[name]):
            elsewhere = (
                sum(letter in other for other in letters.values()) > 1
                or letters[name].count(letter) > 1
            )
            if elsewhere and (letters[name].count(letter) == 1 or axis == 0):
                refused(
                    given,
                    f"{name} of another {letter}",
                    arrays | {name: np.concatenate([x, np.take(x, [0], axis=axis)], axis=axis)},
                )
        if axes[0] == "*":
            if name not in ANY_TYPE:
                assert name in refused(
                    given, f"{name} in floats", arrays | {name: x.astype(np.float32)}
                )
        else:
            for dtype in (np.int32, np.complex64):
                if name in ANY_TYPE and (dtype is np.int32 or name == "queue_rows"):
                    continue
                assert "dtype" in refused(
                    given, f"{name} in {dtype.__name__}", arrays | {name: x.astype(dtype)}
                )


@EACH
def test_refuses_numbers_out_of_range_and_axes_that_are_not_mapped(index):
    given = ROWS[index]
    arrays = arrays_of(given)
    for name in (
        "temperature",
        "student_temperature",
        "teacher_temperature",
        "logit_scale",
        "epsilon",
        "t",
        "alpha",
    ):
        if isinstance(given.knobs.get(name), float) and (name != "alpha" or "x" in arrays):
            for value in (0, 0.0, -0.1, np.float32(0)):
                assert name in refused(given, f"{name}={value}", arrays, **{name: value})
    if "axis_name" in inspect.signature(given.f).parameters:
        assert "axis_name='elsewhere' is not mapped" in refused(
            given, "axis_name", arrays, axis_name="elsewhere"
        )


def floats(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]


def with_gradient(given: Row, arrays):
    """The sum of all floating outputs, for its gradient with respect to all floating arrays."""
    inputs = {name: x for name, x in arrays.items() if x.dtype.kind == "f"}
    rest = {name: x for name, x in arrays.items() if name not in inputs}

    def total(inputs):
        return sum((jnp.sum(x) for x in floats(run(given, inputs | rest))), jnp.zeros(()))

    return jax.value_and_grad(total), inputs


@pytest.mark.slow
@EACH_COMPILED
def test_zero_rows_are_finite_and_products_of_float32_stay_float32(index):
    """Products on accelerators too, whose default is a lower precision: forward, and backward."""
    given = ROWS[index]
    step, inputs = with_gradient(given, arrays_of(given))
    traced = jax.jit(step, compiler_options={"xla_backend_optimization_level": "0"}).trace(inputs)
    for product in products(traced.jaxpr.jaxpr):
        assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2, product
    step = traced.lower().compile()
    for zeroed in ([], *([name] for name in inputs), list(inputs)):
        rows = {
            name: x * np.float32(0) if name in zeroed and name != "concentration" else x
            for name, x in inputs.items()
        }
        value, grads = step(rows)
        assert np.isfinite(value), zeroed
        for name, grad in grads.items():
            assert np.isfinite(grad).all(), (zeroed, name)


@pytest.mark.parametrize("factor", [1e4, 1e5])
@pytest.mark.parametrize(
    "index",
    [
        pytest.param(
            i, marks=[] if name_of(ROWS[i].f) in ("kcl", "bank_softmax") else [pytest.mark.slow]
        )
        for i in range(len(ROWS))
    ],
    ids=_id,
)
def test_large_rows_are_finite(index, factor):
    """Rows that are not unit: logits of 1e9 and 1e11, beyond which float32 steps by 8192."""
    given = ROWS[index]
    arrays = {
        name: x * np.float32(factor) if x.dtype.kind == "f" and name not in SHARES else x
        for name, x in arrays_of(given).items()
    }
    step, inputs = with_gradient(given, arrays)
    value, grads = jax.jit(step)(inputs)
    assert np.isfinite(value)
    for name, grad in grads.items():
        assert np.isfinite(grad).all(), name


@pytest.mark.parametrize("name", ["vicreg", "dim_divergence", "max_margin", "queue_nce"])
def test_a_batch_may_have_more_pairs_than_an_int32_counts(name):
    given = next(given for given in ROWS if name_of(given.f) == name)
    arrays = arrays_of(given)
    many = {"b": 50_000, "k": 50_000}
    shapes = {
        name: [many.get(letter) or size(letter) for letter in axes.strip("*").split()]
        for name, axes in given.arrays.items()
    }
    batch = {name: jax.ShapeDtypeStruct(shapes[name], x.dtype) for name, x in arrays.items()}
    assert floats(jax.eval_shape(lambda arrays: run(given, arrays), batch))


@pytest.mark.parametrize(
    "f",
    [
        lambda z: losses.alignment(z, z),
        losses.uniformity,
        lambda z: losses.contrast(z, z, scale=2.0).lse.sum(),
        lambda z: losses.contrast(z, z, scale=2.0, block_size=2).lse.sum(),
        lambda z: losses.knowledge_distillation(made("b d", 1), z, temperature=2.0),
        lambda z: losses.hard_simple(
            made("b d", 1), z, jnp.zeros(len(z), int), num_hard=2, negative_weight=1.0
        ),
        lambda z: losses.supcon(
            z[:, None], np.zeros(6, int), **T, summation="inside", denominator="one_positive"
        ),
        lambda z: losses.supcon(made("b v d", 1), mask=jnp.abs(z @ z.T), **T),
    ],
)
def test_a_row_that_is_nan_makes_the_loss_nan(f):
    z = made("b d", 0)
    z[1, 2] = np.nan
    assert np.isnan(jax.jit(f)(z))


def test_a_row_whose_length_overflows_is_not_a_zero_row():
    z = jnp.array([[1e30, 0.0], [3.0, 4.0], [0.0, 0.0]])
    rows = jax.jit(cl_jax.losses.unit)(z)
    assert np.isnan(rows[0]).all()
    np.testing.assert_allclose(rows[1:], [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_a_bias_is_a_scalar_and_a_block_size_any_integer():
    z = made("b d", 0)
    with pytest.raises(ValueError, match=r"logit_bias has shape \(1,\); expected a scalar"):
        losses.siglip(z, z, logit_scale=1.0, logit_bias=jnp.zeros(1))
    with pytest.raises(ValueError, match="logit_bias is None; expected a number"):
        losses.siglip(z, z, logit_scale=1.0, logit_bias=None)
    f = jax.jit(losses.nt_xent, static_argnames=("temperature", "block_size"))
    np.testing.assert_allclose(
        f(z, z[::-1], temperature=0.5, block_size=np.int64(4)),
        f(z, z[::-1], temperature=0.5),
        rtol=1e-6,
    )


# Inner products by definition; cosines by definition; of values and not of directions; parts of
# losses and memories, which are given what was normalised before.
NOT_NORMALISED = (
    {"contrast", "pair_sums", "n_pair", "infograph", "infograph_expectations"}
    | {"cpc", "cpc_steps", "cpc_logits", "cpc_grid", "cpc_grid_steps"}
    | {"dim_divergence", "dim_infonce", "dim_donsker_varadhan"}
    | {"byol", "byol_rows", "simsiam", "simsiam_rows", "fastsiam", "imix_byol"}
    | {"koleo", "koleo_neighbours", "nearest_neighbours", "unit", "normalise"}
    | {"vicreg", "vicreg_terms", "barlow_twins", "cross_correlation", "feature_covariance"}
    | {"whiten", "lejepa", "lejepa_terms", "sigreg", "sigreg_statistics", "effective_rank"}
    | {"mae", "normalise_patches", "embed"}
    | {"hardest_negatives", "mix_negatives", "expert_sums", "expert_prototypes", "swav_codes"}
    | {"tsc_centroids", "class_means", "update", "spcl_update", "push", "enqueue"}
)


def test_features_are_normalised_by_one_keyword():
    without = set()
    for given in ROWS:
        features = [axes for axes in given.arrays.values() if axes.split()[-1] == "d"]
        knob = inspect.signature(given.f).parameters.get("normalise")
        if features and knob is None and given.f is not pcl:
            without.add(name_of(given.f))
        assert knob is None or (knob.default is True and knob.kind is knob.KEYWORD_ONLY)
    assert without == NOT_NORMALISED and "normalise" in inspect.signature(losses.pcl).parameters


def test_a_temperature_that_is_no_scalar_is_named():
    z = jnp.ones((4, 3))
    for given in (jnp.full((1,), 0.1), np.full((1,), 0.1)):
        with pytest.raises(ValueError, match=r"temperature has shape \(1,\); expected a scalar"):
            losses.nt_xent(z, z, temperature=given)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float16, marks=pytest.mark.slow), jnp.bfloat16])
@EACH_WHOLE
def test_half_precision_is_summed_in_float32(index, dtype):
    """A gradient has the type of its input."""
    given = ROWS[index]
    arrays = {
        name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in arrays_of(given).items()
    }
    rest = {name: x for name, x in arrays.items() if x.dtype != dtype}

    def step(inputs):
        outputs = floats(run(given, inputs | rest))
        assert {x.dtype for x in outputs} <= {
            jnp.dtype(dtype if name_of(given.f) in KEEPS_TYPE else jnp.float32)
        }
        return sum((jnp.sum(x.astype(jnp.float32)) for x in outputs), jnp.zeros(()))

    grads = jax.eval_shape(
        jax.grad(step), {name: x for name, x in arrays.items() if name not in rest}
    )
    assert {x.dtype for x in jax.tree.leaves(grads)} <= {jnp.dtype(dtype)}


def products(jaxpr):
    """Every matrix product of a program, those of inner programs too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")
        ):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from products(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: whitening.moments(x).scatter,
        lambda x: whitening.apply(whitening.Whitening(x[0], jnp.ones((5, 3))), x),
        lambda x: dbscan.nearest(x, 2),
        lambda x: Prototypes(7).init_with_output(jax.random.key(0), x)[0],
        lambda x: WeightNormDense(7).init_with_output(jax.random.key(0), x)[0],
    ],
    ids=["moments", "whiten", "nearest", "prototypes", "weight_norm"],
)
def test_products_of_float32_beside_the_losses_stay_float32(f):
    """Forward, and backward where there is a gradient: scores that are divided by a temperature,
    exact ranks, small eigenvalues."""

    def step(x):
        out, transpose = jax.vjp(f, x)
        real = jnp.issubdtype(out.dtype, jnp.floating)
        return transpose(out) if real else out

    found = list(products(jax.make_jaxpr(step)(made("b d", 0)).jaxpr))
    assert found
    for product in found:
        assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2, product


@pytest.mark.parametrize("number", [float, np.float32, np.array, jnp.float32])
def test_a_setting_may_be_any_kind_of_number(number):
    """Of those whose value chooses what is computed. Nothing is compiled."""
    z, views = made("b d", 0), made("v b d", 0)
    order = np.arange(6)[None]
    one, half, small = (number(x) for x in (1.0, 0.5, 1e-4))

    def every(z):
        return (
            losses.soft_labels(z, z, temperature=1.0, alpha=one).loss,
            losses.w_mse(jnp.stack([z, z]), order, group_size=3, eps=small),
            losses.hcl(z, z, temperature=0.5, beta=half, tau_plus=half),
            losses.inva_spread(z, z, temperature=0.5, negative_weight=half),
        )

    jax.eval_shape(every, z)
    for name, value in (("beta", -1.0), ("tau_plus", 1.0)):
        with pytest.raises(ValueError, match=f"{name} is "):
            losses.hcl(z, z, temperature=0.5, **{name: number(value)})
    with pytest.raises(ValueError, match="group_size is 3 for embeddings of 5 features"):
        losses.w_mse(views, order, group_size=3, eps=number(0.0))
    with pytest.raises(ValueError, match="but labels is None"):
        losses.soft_labels(z, z, temperature=1.0, alpha=number(0.5))


def test_a_traced_setting():
    z, labels = made("b d", 0), np.arange(6)
    spcl = partial(losses.spcl, z, z, labels, labels, temperature=0.1, num_labels=6)
    assert jax.eval_shape(lambda eps: spcl(eps=eps), 1e-6).shape == ()
    with pytest.raises(ValueError, match="negative_weight is traced; expected a number"):
        jax.eval_shape(lambda m: losses.inva_spread(z, z, temperature=0.5, negative_weight=m), 1.0)


@pytest.mark.parametrize("block_size", [0, 4])
@pytest.mark.parametrize("f", [losses.nt_xent, losses.info_nce, losses.clip])
def test_bfloat16_products_are_accumulated_in_float32(f, block_size):
    knobs = {"logit_scale": 10.0} if f is losses.clip else T
    z = jnp.ones((8, 5), jnp.bfloat16)
    step = jax.value_and_grad(lambda a, b: f(a, b, **knobs, block_size=block_size), argnums=(0, 1))
    found = list(products(jax.make_jaxpr(step)(z, z).jaxpr))
    assert len(found) >= 3
    for product in found:
        assert {x.aval.dtype for x in product.invars} == {jnp.dtype(jnp.bfloat16)}
        assert product.params["preferred_element_type"] == jnp.float32


@pytest.mark.parametrize("without", [0, 1])
def test_nothing_is_multiplied_for_queries_or_keys_without_gradient(without):
    """A momentum encoder's keys, NNCLR's neighbours: one of the four products of tiles less."""
    z = jnp.ones((8, 5))

    def loss(*pair, stopped):
        pair = [jax.lax.stop_gradient(x) if i == stopped else x for i, x in enumerate(pair)]
        return losses.info_nce(*pair, **T, block_size=4)

    def count(stopped):
        step = jax.grad(partial(loss, stopped=stopped), argnums=(0, 1))
        return len(list(products(jax.make_jaxpr(step)(z, z).jaxpr)))

    assert count(without) == count(None) - 1 == 3
