"""VICReg, Barlow Twins, W-MSE, DCL, NNCLR, MAE, SimMIM, iBOT, DINOv2, KoLeo, SIGReg and LeJEPA."""

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.core.numerics import unit
from cl_jax.encoders import masking, positions
from cl_jax.losses import (
    assignments,
    decorrelation,
    decoupled,
    masked,
    neighbours,
    no_negatives,
    spread,
)
from cl_jax.losses.no_negatives import swapped_cross_entropy
from cl_jax.memory import centre, queue
from tests.goldens import Case, Golden

RANKS = "ranks"


def over_ranks(loss, *arrays, of_rank: float = 1.0) -> tuple:
    """loss(*local arrays, axis_name) over axis 0 of the arrays: (losses of the ranks, gradients of
    their mean, and the gradient that a rank of the authors' program holds, a multiple of it)."""

    def each(*arrays):
        return jax.vmap(lambda *local: loss(*local, RANKS), axis_name=RANKS)(*arrays)

    grads = jax.grad(lambda *arrays: each(*arrays).mean(), argnums=tuple(range(len(arrays))))(
        *arrays
    )
    return each(*arrays), grads, [of_rank * grad for grad in grads]


def named(values, grads, of_rank, names) -> dict:
    return {
        "loss": values[0],
        "loss_ranks": values,
        **{f"grad_{name}": grad for name, grad in zip(names, grads)},
        **{f"gradrank_{name}": grad for name, grad in zip(names, of_rank)},
    }


def _vicreg_knobs(case: Case) -> dict:
    return {
        "invariance_weight": case["sim_coeff"],
        "variance_weight": case["std_coeff"],
        "covariance_weight": case["cov_coeff"],
        "eps": case["eps"],
    }


def vicreg(case: Case) -> dict:
    loss, grads = case.grad(
        lambda a, b: decorrelation.vicreg(a, b, **_vicreg_knobs(case)), "z1", "z2"
    )
    return {"loss": loss, **grads}


def vicreg_terms(case: Case) -> dict:
    def terms(a, b):
        return decorrelation.vicreg_terms(a, b, eps=case["eps"])

    z = case["z1"], case["z2"]
    found = terms(*z)
    out = vicreg(case) | {
        "repr_loss": found.invariance,
        "std_loss": found.variance,
        "cov_loss": found.covariance,
    }
    for ours, theirs in (("invariance", "repr"), ("variance", "std"), ("covariance", "cov")):
        grads = jax.grad(lambda a, b, ours=ours: getattr(terms(a, b), ours), argnums=(0, 1))(*z)
        out |= {f"grad{theirs}_z{view + 1}": grad for view, grad in enumerate(grads)}
    for view in range(2):
        out[f"std_z{view + 1}"] = found.std[view]
        out[f"cov_z{view + 1}"] = decorrelation.feature_covariance(z[view])
    return out


def vicreg_dist(case: Case) -> dict:
    """A rank of the authors' returns the invariance of its own rows; our ranks return the mean."""
    z = case["z1"], case["z2"]
    knobs = _vicreg_knobs(case)

    def loss(a, b, axis_name):
        return decorrelation.vicreg(a, b, **knobs, axis_name=axis_name)

    out = named(*over_ranks(loss, *z, of_rank=case["world_size"]), ("z1", "z2"))
    own = jnp.mean(jnp.square(z[0] - z[1]), axis=(1, 2))
    return out | {"loss_ranks": out["loss_ranks"] + knobs["invariance_weight"] * (own - own.mean())}


def _barlow_knobs(case: Case) -> dict:
    return {
        "off_diagonal_weight": case["lambd"],
        "scale": case["scale_loss"],
        "eps": case["bn_eps"],
    }


def barlow(case: Case) -> dict:
    knobs = _barlow_knobs(case)
    loss, grads = case.grad(lambda a, b: decorrelation.barlow_twins(a, b, **knobs), "z1", "z2")
    only = {"scale": 1.0, "eps": case["bn_eps"]}
    diagonal, both = (
        decorrelation.barlow_twins(case["z1"], case["z2"], off_diagonal_weight=weight, **only)
        for weight in (0.0, 1.0)
    )
    correlation = decorrelation.cross_correlation(case["z1"], case["z2"], eps=case["bn_eps"])
    return {
        "loss": loss,
        **grads,
        "corr": correlation,
        "on_diag": diagonal,
        "off_diag": both - diagonal,
    }


def barlow_dist(case: Case) -> dict:
    """The sum over ranks is not seen by the authors' gradient, so that a rank holds 1 times it."""
    knobs = _barlow_knobs(case)

    def loss(a, b, axis_name):
        return decorrelation.barlow_twins(a, b, **knobs, axis_name=axis_name)

    return named(*over_ranks(loss, case["z1"], case["z2"]), ("z1", "z2"))


def wmse(case: Case) -> dict:
    knobs = {"group_size": case["w_size"], "eps": case["w_eps"]}
    loss, grads = case.grad(
        lambda h: decorrelation.w_mse(h, case["perm"], normalise=bool(case["norm"]), **knobs), "h"
    )
    return {"loss": loss, "z": decorrelation.whiten(case["h"], case["perm"], **knobs), **grads}


def _dcl_rows(case: Case, z1, z2, axis_name=None):
    if "sigma" not in case:
        return decoupled.dcl_rows(z1, z2, temperature=case["temperature"], axis_name=axis_name)
    return decoupled.dclw_rows(
        z1,
        z2,
        temperature=case["temperature"],
        sigma=case["sigma"],
        detach_weights=bool(case["detach_weights"]),
    )


def dcl(case: Case) -> dict:
    def loss(z1, z2):
        if "sigma" not in case:
            return decoupled.dcl(z1, z2, temperature=case["temperature"])
        return _dcl_rows(case, z1, z2).mean()

    value, grads = case.grad(loss, "z1", "z2")
    first, second = _dcl_rows(case, case["z1"], case["z2"]).mean(axis=1)
    out = {"loss": value, "loss_12": first, "loss_21": second, **grads}
    if "sigma" in case:
        out["weights"] = decoupled.dclw_weights(case["z1"], case["z2"], sigma=case["sigma"])
    return out


def dcl_dist(case: Case) -> dict:
    """A rank of the authors' returns the mean of its own rows."""

    def loss(z1, z2, axis_name):
        return decoupled.dcl(z1, z2, temperature=case["temperature"], axis_name=axis_name)

    z = case["z1"], case["z2"]
    out = named(*over_ranks(loss, *z, of_rank=case["world_size"]), ("z1", "z2"))
    rows = jax.vmap(lambda a, b: _dcl_rows(case, a, b, RANKS), axis_name=RANKS)(*z)
    return out | {"loss_ranks": rows.mean(axis=(1, 2))}


def _nnclr_queue(case: Case) -> queue.Queue:
    size = case["queue"].shape[0]
    return queue.Queue(case["queue"], jnp.int32(case["queue_ptr"]), jnp.int32(size))


def _unit(z):
    return unit(z)


def nnclr(case: Case) -> dict:
    found = [neighbours.nearest_neighbours(case[name], case["queue"]) for name in ("z1", "z2")]
    near = [each.rows for each in found]
    knobs = {"temperature": case["temperature"]}
    loss, grads = case.grad(lambda *p: neighbours.nnclr(*p, *near, **knobs), "p1", "p2")
    rows = neighbours.nnclr_rows(case["p1"], case["p2"], *near, **knobs)
    after = queue.enqueue(_nnclr_queue(case), _unit(case["z1"]))
    return {
        "loss": loss,
        "loss_12": rows[0].mean(),
        "loss_21": rows[1].mean(),
        **{f"nn_index{i + 1}": each.position for i, each in enumerate(found)},
        **{f"nn{i + 1}": each.rows for i, each in enumerate(found)},
        **grads,
        "queue_after": after.rows,
        "queue_ptr_after": after.pointer,
    }


def nnclr_dist(case: Case) -> dict:
    z, p = ([case[f"{kind}{view}"] for view in (1, 2)] for kind in "zp")
    found = [jax.vmap(lambda x: neighbours.nearest_neighbours(x, case["queue"]))(x) for x in z]
    near = [each.rows for each in found]
    knobs = {"temperature": case["temperature"]}

    def each(*p):
        return jax.vmap(
            lambda *local: neighbours.nnclr_rows(*local, **knobs, axis_name=RANKS), axis_name=RANKS
        )(*p, *near).mean(axis=(1, 2))

    grads = jax.grad(lambda *p: each(*p).mean(), argnums=(0, 1))(*p)
    total = jax.vmap(
        lambda *local: neighbours.nnclr(*local, **knobs, axis_name=RANKS), axis_name=RANKS
    )(*p, *near)
    after = queue.enqueue(_nnclr_queue(case), _unit(z[0]).reshape(-1, z[0].shape[-1]))
    ranks = case["world_size"]
    return named(total, grads, [ranks * grad for grad in grads], ("p1", "p2")) | {
        "loss_ranks": each(*p),
        **{f"nn_index{i + 1}": each.position for i, each in enumerate(found)},
        **{f"nn{i + 1}": each.rows for i, each in enumerate(found)},
        "queue_after": after.rows,
        "queue_ptr_after": after.pointer,
    }


def nnclr_ntxent(case: Case) -> dict:
    """lightly's bank drops what would pass its end, and starts again there."""
    near = [neighbours.nearest_neighbours(case[name], case["bank"]).rows for name in ("z0", "z1")]
    knobs = {"temperature": case["temperature"], "form": "nt_xent"}
    loss, grads = case.grad(lambda *p: neighbours.nnclr(*p, *near, **knobs), "p0", "p1")
    size, pointer = case["bank"].shape[0], case["bank_ptr"]
    held = queue.Queue(case["bank"], jnp.int32(pointer), jnp.int32(size))
    after = queue.enqueue(held, case["z1"][: size - pointer])
    return {
        "loss": loss,
        "nn0": near[0],
        "nn1": near[1],
        **grads,
        "bank_after": after.rows,
        "bank_ptr_after": after.pointer,
    }


def _channels_last(x):
    return jnp.moveaxis(x, 1, -1)


def mae_loss(case: Case) -> dict:
    patches = masked.patchify(_channels_last(case["imgs"]), patch=case["patch_size"])
    target = masked.normalise_patches(patches) if case["norm_pix_loss"] else patches
    loss, grads = case.grad(lambda pred: masked.mae(pred, target, case["mask"]), "pred")
    each = jnp.mean(jnp.square(case["pred"] - target), axis=-1)
    return {"patches": patches, "target": target, "loss_patches": each, "loss": loss, **grads}


def mae_mask(case: Case) -> dict:
    keep = masking.kept_count(case["noise"].shape[1], case["mask_ratio"])
    found = masking.random_masking(case["noise"], keep)

    def filled(x, token):
        return masking.fill(masking.take(x, found.kept), token[0, 0], found.restore)

    loss, grads = case.grad(
        lambda x, token: jnp.sum(filled(x, token) * case["cotangent"]), "x", "mask_token"
    )
    return {
        "len_keep": np.asarray(keep),
        "ids_keep": found.kept,
        "ids_restore": found.restore,
        "mask": found.mask,
        "x_masked": masking.take(case["x"], found.kept),
        "decoder_tokens": filled(case["x"], case["mask_token"]),
        "loss": loss,
        **grads,
    }


def mae_posembed(case: Case) -> dict:
    side = case["grid_size"]
    table = positions.sincos_2d(side, side, case["embed_dim"], order="mae", dtype=case.dtype)[0]
    return {"pos_embed": table if case["cls_token"] else table[1:]}


def simmim(case: Case) -> dict:
    loss, grads = case.grad(
        lambda x_rec: masked.simmim(*map(_channels_last, (x_rec, case["x"])), case["mask"]), "x_rec"
    )
    return {"loss": loss, **grads}


def simmim_head(case: Case) -> dict:
    def predicted(z, w, b):
        x = jnp.einsum("bfhw,of->bhwo", z, w) + jnp.broadcast_to(
            b, (z.shape[0], *z.shape[2:], b.shape[0])
        )
        return masked.pixel_shuffle(x, stride=case["encoder_stride"])

    def loss(z, w, b):
        return masked.simmim(predicted(z, w, b), _channels_last(case["x"]), case["mask"])

    value, grads = case.grad(loss, "z", "w", "b")
    x_rec = jnp.moveaxis(predicted(case["z"], case["w"], case["b"]), -1, 1)
    return {"x_rec": x_rec, "loss": value, **grads}


def _temperature(case: Case, kind: str, first_epoch: int = 0):
    """iBOT's ramp; that of the patches waits for the epoch in which patches begin."""
    return no_negatives.teacher_temperature(
        max(case["epoch"] - first_epoch, 0),
        start=case[f"warmup_teacher_{kind}temp"],
        final=case[f"teacher_{kind}temp"],
        warmup_epochs=case["warmup_teacher_temp_epochs"],
    )


def _crops(x, count):
    """Crop-major rows [..., count * B, *rest] of one rank -> [count, B, *rest]."""
    return x.reshape(count, -1, *x.shape[1:])


def _ibot_patch(case: Case, student, teacher, mask, axis_name=None):
    views = case["ngcrops"]
    return case["lambda2"] * masked.ibot_patches(
        _crops(student, views),
        _crops(teacher, views),
        mask.reshape(*mask.shape[:2], -1),
        case["center2"][0, 0],
        student_temperature=case["student_temp"],
        teacher_temperature=_temperature(case, "patch_", case["mim_start_epoch"]),
        axis_name=axis_name,
    )


def ibot_patch(case: Case) -> dict:
    loss, grads = case.grad(
        lambda student: _ibot_patch(case, student, case["teacher_patch"], case["mask"]),
        "student_patch",
    )
    after = centre.update(
        case["center2"][0, 0], case["teacher_patch"], momentum=case["center_momentum2"]
    )
    return {
        "loss": loss,
        **grads,
        "center2_after": after[None, None],
        "teacher_temp_used": _temperature(case, "patch_", case["mim_start_epoch"]),
    }


def ibot_patch_dist(case: Case) -> dict:
    def each(axis_name):
        return lambda student: jax.vmap(
            lambda *local: _ibot_patch(case, *local, axis_name), axis_name=RANKS
        )(student, case["teacher_patch"], case["mask"])

    loss, grads = case.grad(lambda student: each(RANKS)(student).mean(), "student_patch")
    after = jax.vmap(
        lambda t: centre.update(
            case["center2"][0, 0], t, momentum=case["center_momentum2"], axis_name=RANKS
        ),
        axis_name=RANKS,
    )(case["teacher_patch"])
    return {
        "loss": loss,
        "loss_ranks": each(None)(case["student_patch"]),
        **grads,
        "center2_after": after[0][None, None],
        "teacher_temp_used": _temperature(case, "patch_", case["mim_start_epoch"]),
    }


def _ibot_cls(case: Case, students, teacher, axis_name=None):
    """students: (globals,) or (globals, locals), crop-major rows of one rank."""
    counts = case["ngcrops"], case["nlcrops"]
    return case["lambda1"] * no_negatives.dino(
        jnp.concatenate([_crops(x, count) for x, count in zip(students, counts)]),
        _crops(teacher, case["ngcrops"]),
        case["center"][0],
        student_temperature=case["student_temp"],
        teacher_temperature=_temperature(case, ""),
        axis_name=axis_name,
    )


def _ibot_students(case: Case) -> list:
    return ["student_cls"] + (["student_local_cls"] if "student_local_cls" in case else [])


def ibot_cls(case: Case) -> dict:
    loss, grads = case.grad(
        lambda *students: _ibot_cls(case, students, case["teacher_cls"]), *_ibot_students(case)
    )
    after = centre.update(case["center"][0], case["teacher_cls"], momentum=case["center_momentum"])
    return {
        "loss": loss,
        **grads,
        "center_after": after[None],
        "teacher_temp_used": _temperature(case, ""),
    }


def ibot_cls_dist(case: Case) -> dict:
    names = _ibot_students(case)

    def each(axis_name):
        return lambda *students: jax.vmap(
            lambda teacher, *local: _ibot_cls(case, local, teacher, axis_name), axis_name=RANKS
        )(case["teacher_cls"], *students)

    loss, grads = case.grad(lambda *students: each(RANKS)(*students).mean(), *names)
    after = jax.vmap(
        lambda t: centre.update(
            case["center"][0], t, momentum=case["center_momentum"], axis_name=RANKS
        ),
        axis_name=RANKS,
    )(case["teacher_cls"])
    return {
        "loss": loss,
        "loss_ranks": each(None)(*(case[name] for name in names)),
        **grads,
        "center_after": after[:1],
        "teacher_temp_used": _temperature(case, ""),
    }


def koleo(case: Case) -> dict:
    loss, grads = case.grad(lambda x: spread.koleo(x, eps=case["eps"]), "x")
    found = spread.koleo_neighbours(case["x"], eps=case["eps"])
    return {"loss": loss, "nn_index": found.position, "distances": found.distance, **grads}


def dinov2_sinkhorn(case: Case) -> dict:
    codes = assignments.sinkhorn(
        case["teacher_output"], epsilon=case["teacher_temp"], iterations=case["n_iterations"]
    )

    def loss(student):
        log_p = jax.nn.log_softmax(student / case["student_temp"])
        return swapped_cross_entropy(jnp.stack([log_p, log_p]), codes[None], (1,))

    value, grads = case.grad(loss, "student")
    return {"codes": codes, "loss": value, **grads}


def dinov2_sinkhorn_dist(case: Case) -> dict:
    """Ranks of different sizes: rows that fill up the smaller ones do not count."""
    counts = case.numpy("n_ranks")
    ends = np.cumsum(counts)
    rank = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(ends[-1]) - (ends - counts)[rank]
    rows = jnp.zeros((len(counts), counts.max(), case["teacher_output"].shape[1]), case.dtype)
    valid = np.arange(counts.max())[None] < counts[:, None]
    codes = jax.vmap(
        lambda scores, valid: assignments.sinkhorn(
            scores,
            epsilon=case["teacher_temp"],
            iterations=case["n_iterations"],
            valid=valid,
            axis_name=RANKS,
        ),
        axis_name=RANKS,
    )(rows.at[rank, place].set(case["teacher_output"]), jnp.asarray(valid))
    return {"codes": codes[rank, place]}


def dinov2_patch(case: Case) -> dict:
    """Rows of the hidden patches alone, put into their places."""
    mask = case.numpy("mask").astype(bool)
    image, patch = np.nonzero(mask)
    width = case["teacher_probs"].shape[1]

    def placed(rows):
        return jnp.zeros((1, *mask.shape, width), rows.dtype).at[0, image, patch].set(rows)

    loss, grads = case.grad(
        lambda rows: masked.patch_distillation(
            placed(rows),
            placed(case["teacher_probs"]),
            mask[None],
            student_temperature=case["student_temp"],
        ),
        "student_masked",
    )
    return {"loss": loss, **grads}


def sigreg(case: Case) -> dict:
    knobs = {"t_max": case["t_max"], "num_points": case["n_points"]}
    loss, grads = case.grad(lambda x: spread.sigreg(x, case["directions"], **knobs), "x")
    each = spread.sigreg_statistics(case["x"], case["directions"], **knobs)
    return {"loss": loss, "statistics": each, **grads}


def sigreg_dist(case: Case) -> dict:
    knobs = {"t_max": case["t_max"], "num_points": case["n_points"]}

    def loss(x, axis_name):
        return spread.sigreg(x, case["directions"], **knobs, axis_name=axis_name)

    each = jax.vmap(
        lambda x: spread.sigreg_statistics(x, case["directions"], **knobs, axis_name=RANKS),
        axis_name=RANKS,
    )(case["x"])
    return named(*over_ranks(loss, case["x"], of_rank=case["world_size"]), ("x",)) | {
        "statistics": each[0]
    }


def lejepa(case: Case) -> dict:
    names = ["global_proj"] + (["local_proj"] if "local_proj" in case else [])
    knobs = {
        "num_global": case["global_proj"].shape[0],
        "t_max": case["t_max"],
        "num_points": case["n_points"],
    }
    loss, grads = case.grad(
        lambda *z: spread.lejepa(
            jnp.concatenate(z), case["directions"], weight=case["lam"], **knobs
        ),
        *names,
    )
    terms = spread.lejepa_terms(
        jnp.concatenate([case[name] for name in names]), case["directions"], **knobs
    )
    return {
        "loss": loss,
        "loss_sigreg": terms.sigreg,
        "loss_prediction": terms.prediction,
        **grads,
    }


TABLE = {
    "vicreg": Golden(vicreg, f32=2e-6),
    "vicreg-terms": Golden(vicreg_terms, f32=4e-6),
    "vicreg-dist": Golden(vicreg_dist),
    "barlow": Golden(barlow, f32=5e-6),
    "barlow-dist": Golden(barlow_dist),
    "wmse": Golden(wmse, f32=8e-6),
    "dcl": Golden(dcl, f32=2e-6),
    "dcl-dist": Golden(dcl_dist),
    "dclw": Golden(dcl, f32=3e-6),
    "nnclr": Golden(nnclr, f32=2e-6),
    "nnclr-dist": Golden(nnclr_dist),
    "nnclr-ntxent": Golden(nnclr_ntxent, f32=2e-6),
    "mae-loss": Golden(mae_loss, f32=1.3e-4),
    "mae-mask": Golden(mae_mask, f32=2e-6),
    "mae-posembed": Golden(mae_posembed, f32=2e-6),
    "simmim": Golden(simmim, f32=2e-6),
    "simmim-head": Golden(simmim_head, f32=2e-6),
    "ibot-patch": Golden(ibot_patch, f32=4e-6),
    "ibot-patch-dist": Golden(ibot_patch_dist, f32=5e-6),
    "ibot-cls": Golden(ibot_cls, f32=9e-6),
    "ibot-cls-dist": Golden(ibot_cls_dist, f32=5e-6),
    "koleo": Golden(koleo, f64=1e-7, f32=2e-6),
    "dinov2-sinkhorn": Golden(dinov2_sinkhorn, f32=5e-6),
    "dinov2-sinkhorn-dist": Golden(dinov2_sinkhorn_dist, f32=5e-6),
    "dinov2-patch": Golden(dinov2_patch, f32=2e-6),
    "sigreg": Golden(sigreg, f32=2e-6),
    "sigreg-dist": Golden(sigreg_dist),
    "lejepa": Golden(lejepa, f32=2e-6),
}
