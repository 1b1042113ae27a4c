"""BYOL, SimSiam, DINO, SwAV, DeepCluster v2, Deep InfoMax and CPC."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cl_jax.cluster.spherical import labels_by_example, spherical_kmeans
from cl_jax.losses import assignments, mutual_information, no_negatives, predictive
from cl_jax.memory import centre, crop_queue, prototypes
from tests.goldens import Case, Golden

RANKS = "ranks"


def byol_loss(case: Case) -> dict:
    p1, p2, z1, z2 = (
        case[f"{kind}_view{view}"] for kind in ("prediction", "projection") for view in (1, 2)
    )
    # A zero row is among the predictions, with the gradient of x / eps.
    byol = partial(no_negatives.byol, released_gradient=True)
    representation, (grad_p1, grad_p2) = jax.value_and_grad(byol, argnums=(0, 1))(p1, p2, z1, z2)
    classifier, grad_logits = case.grad(
        lambda x: assignments.cross_entropy(x, case["labels"]), "logits_view1"
    )
    return {
        "loss": representation + classifier,
        "repr_loss": representation,
        "classif_loss": classifier,
        "regression_p1_z2": no_negatives.byol_rows(p1, z2),
        "grad_prediction_view1": grad_p1,
        "grad_prediction_view2": grad_p2,
        **grad_logits,
    }


def simsiam_loss(case: Case) -> dict:
    loss, grads = case.grad(
        lambda p1, p2: no_negatives.simsiam(p1, p2, case["z1"], case["z2"], released_gradient=True),
        "p1",
        "p2",
    )
    return {"loss": loss, **grads}


def dino_loss(case: Case) -> dict:
    temperature = no_negatives.teacher_temperature(
        case["epoch"],
        start=case["warmup_teacher_temp"],
        final=case["teacher_temp"],
        warmup_epochs=case["warmup_teacher_temp_epochs"],
    )

    def step(middle, batch):
        student, teacher = (
            x.reshape(crops, -1, x.shape[-1]) for x, crops in zip(batch, (case["ncrops"], 2))
        )
        loss, grad = jax.value_and_grad(no_negatives.dino)(
            student,
            teacher,
            middle,
            student_temperature=case["student_temp"],
            teacher_temperature=temperature,
        )
        middle = centre.update(middle, teacher, momentum=case["center_momentum"])
        return middle, (loss, grad.reshape(-1, grad.shape[-1]), middle[None])

    steps = case["student"], case["teacher"]
    _, (losses, grads, centres) = lax.scan(step, case["center"][0], steps)
    return {
        "loss": losses[0],
        "loss_steps": losses,
        "grad_student": grads,
        "center_after": centres,
        "teacher_temp_used": temperature,
    }


def dino_loss_multi(case: Case) -> dict:
    ranks, width = case["student"].shape[0], case["student"].shape[-1]
    student = case["student"].reshape(ranks, case["ncrops"], -1, width)
    teacher = case["teacher"].reshape(ranks, 2, -1, width)

    def per_rank(student, axis_name):
        def one(student, teacher):
            return no_negatives.dino(
                student,
                teacher,
                case["center"][0],
                student_temperature=case["student_temp"],
                teacher_temperature=case["teacher_temp"],
                axis_name=axis_name,
            )

        return jax.vmap(one, axis_name=RANKS)(student, teacher)

    loss, grad = jax.value_and_grad(lambda s: per_rank(s, RANKS).mean())(student)
    after = jax.vmap(
        lambda t: centre.update(
            case["center"][0], t, momentum=case["center_momentum"], axis_name=RANKS
        ),
        axis_name=RANKS,
    )(teacher)
    return {
        "loss": loss,
        "loss_per_rank": per_rank(student, None),
        "grad_student": grad.reshape(ranks, -1, width),
        "center_after": after[:1],
    }


def dino_teacher_temperature(case: Case) -> dict:
    return {
        "values": no_negatives.teacher_temperature(
            case["epoch"],
            start=case["warmup_teacher_temp"],
            final=case["teacher_temp"],
            warmup_epochs=case["warmup_teacher_temp_epochs"],
        )
    }


def swav_sinkhorn(case: Case) -> dict:
    return {
        "codes": assignments.sinkhorn(
            case["scores"], epsilon=case["epsilon"], iterations=case["iterations"]
        )
    }


def swav_sinkhorn_multi(case: Case) -> dict:
    return {
        "codes": jax.vmap(
            lambda s: assignments.sinkhorn(
                s, epsilon=case["epsilon"], iterations=case["iterations"], axis_name=RANKS
            ),
            axis_name=RANKS,
        )(case["scores"])
    }


def _swav_step(case: Case, crops, weights, queue, axis_name):
    """Loss, codes, the queue after and whether it was used, of one rank; the queue is the rank's
    own."""
    assigned = case.numpy("crops_for_assign").tolist()
    z = prototypes.normalise(crops)
    scores = jnp.einsum("vbd,kd->vbk", z, weights)
    own = jnp.stack([scores[i] for i in assigned])
    filled = None if queue is None else crop_queue.filled(queue)
    codes = assignments.swav_codes(
        own,
        queue,
        weights,
        filled,
        epsilon=case["epsilon"],
        iterations=case["iterations"],
        queue_per_device=True,
        axis_name=axis_name,
    )
    loss = assignments.swav(scores, codes, temperature=case["temperature"], assigned=assigned)
    after = None if queue is None else crop_queue.push(queue, jnp.stack([z[i] for i in assigned]))
    return loss, (codes, after, filled)


def _swav(case: Case, crops, queue) -> dict:
    """crops [S, R, V, b, D] and queue [R, A, L, D]: S steps on R ranks, results stacked over ranks,
    then steps."""
    weights = prototypes.normalise(case["prototypes"])

    def step(queue, batch):
        def total(batch, weights):
            losses, rest = jax.vmap(
                lambda x, q: _swav_step(case, x, weights, q, RANKS), axis_name=RANKS
            )(batch, queue)
            return losses.mean(), (losses, *rest)

        (loss, (losses, codes, after, used)), grads = jax.value_and_grad(
            total, argnums=(0, 1), has_aux=True
        )(batch, weights)
        return after, (loss, losses, codes, after, used, *grads)

    _, steps = lax.scan(step, queue, crops)
    loss, losses, codes, after, used, grad_crops, grad_weights = steps
    frozen = np.arange(len(crops)) < case["freeze_iters"]
    by_rank = {
        name: jnp.swapaxes(value, 0, 1)
        for name, value in {
            "loss_steps_per_rank": losses,
            "codes": codes,
            "queue_after": after,
            "queue_used": used,
            "grad_crops": grad_crops,
        }.items()
        if value is not None
    }
    return {
        **by_rank,
        "loss": loss[0],
        "loss_steps": loss,
        "loss_per_rank": losses[0],
        "grad_prototypes": jnp.where(frozen[:, None, None], 0, grad_weights),
        "prototypes_normalised": weights,
    }


def swav(case: Case) -> dict:
    out = _swav(case, case["crops"][:, None], case["queue"][None] if "queue" in case else None)
    return {
        name: value[0] if name in ("codes", "queue_after", "queue_used", "grad_crops") else value
        for name, value in out.items()
    }


def swav_multi(case: Case) -> dict:
    return _swav(case, case["crops"], case["queue"] if "queue" in case else None)


def _cluster(case: Case, memory, index, iterations):
    """memory [R, banks, M, D], index [R, M] -> centroids of each head, assignments [heads,
    n_data]."""
    centroids, labels = [], []
    for head, size in enumerate(case.numpy("nmb_prototypes").tolist()):

        def one(bank, index):
            found, assigned = spherical_kmeans(
                bank,
                case["permutations"][head, :size],
                iterations=iterations,
                block_size=16,
                axis_name=RANKS,
            )
            return found, labels_by_example(assigned, index, case["n_data"], axis_name=RANKS)

        found, assigned = jax.vmap(one, axis_name=RANKS)(memory[:, head % memory.shape[1]], index)
        centroids.append(found[0]), labels.append(assigned[0])
    return centroids, jnp.stack(labels)


def dcv2_cluster_multi(case: Case) -> dict:
    centroids, labels = _cluster(case, case["memory"], case["index"], case["kmeans_iters"])
    return {
        "assignments": labels,
        **{f"centroids_{head}": found for head, found in enumerate(centroids)},
    }


def dcv2_cluster(case: Case) -> dict:
    centroids, labels = _cluster(
        case, case["memory"][None], case["index"][None], case["kmeans_iters"]
    )
    return {
        "assignments": labels,
        **{f"centroids_{head}": found for head, found in enumerate(centroids)},
    }


def dcv2_loss(case: Case) -> dict:
    memory, index = case["memory"], case["index"]
    centroids, labels = _cluster(case, memory[None], index[None], 10)

    def step(batch):
        crops, ids = batch

        def loss(crops, centroids):
            z = prototypes.normalise(crops)
            scores = [jnp.einsum("vbd,kd->vbk", z, head) for head in centroids]
            return assignments.deepcluster_v2(
                scores, labels[:, ids], temperature=case["temperature"]
            ), z

        (value, z), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(crops, centroids)
        return value, z[: len(memory)], *grads

    batches = case["crops"], case["batch_index"]
    losses, z, grad_crops, grad_centroids = lax.map(step, batches)
    ids = case["batch_index"].reshape(-1)
    index = index.at[: len(ids)].set(ids)
    memory = memory.at[:, : len(ids)].set(jnp.moveaxis(z, 1, 0).reshape(len(memory), len(ids), -1))
    heads = range(len(centroids))
    return {
        "loss": losses[0],
        "loss_steps": losses,
        "assignments": labels,
        "index_after": index,
        "memory_after": memory,
        "grad_crops": grad_crops,
        **{f"prototypes_{head}": centroids[head] for head in heads},
        **{f"grad_prototypes_{head}": grad_centroids[head] for head in heads},
    }


def _dim(case: Case, loss) -> dict:
    """The authors' maps are [B, units, places]."""
    value, grads = case.grad(
        lambda local, summary: loss(jnp.swapaxes(local, 1, 2), jnp.swapaxes(summary, 1, 2)),
        "local",
        "globals",
    )
    return {"loss": value, **grads}


def dim_jsd(case: Case) -> dict:
    return _dim(case, mutual_information.dim_divergence)


def dim_infonce(case: Case) -> dict:
    return _dim(case, mutual_information.dim_infonce)


def dim_fdiv(case: Case) -> dict:
    return _dim(
        case, lambda *maps: mutual_information.dim_divergence(*maps, measure=case["measure"])
    )


def cpc_audio(case: Case) -> dict:
    negatives = predictive.offset_negatives(
        case["draw_batch"], case["draw_offset"], length=case["z"].shape[1]
    )
    scale = 1 / case["z"].shape[2]

    def loss(c, z, w):
        if case["mode"] == "reverse":
            c, z = c[:, ::-1], z[:, ::-1]
        p = predictive.predictions(c, w)
        steps = predictive.cpc_steps(p, z, negatives, scale=scale)
        return steps.loss.sum(), (
            steps,
            jnp.stack(predictive.cpc_logits(p, z, negatives, scale=scale)),
        )

    names = ("c", "z", "W")
    (value, (steps, logits)), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
        *map(case.get, names)
    )
    return {
        "loss": value,
        "loss_k": steps.loss,
        "accuracy_k": steps.accuracy,
        "neg_index": negatives,
        "logits": logits,
        **{f"grad_{name}": grad for name, grad in zip(names, grads)},
    }


def cpc_perm(case: Case) -> dict:
    (batch, length), steps = case["z"].shape[:2], case["W"].shape[0]
    negatives = [
        predictive.permuted_negatives(case["perm"], batch_size=batch, length=length, step=step)
        for step in range(1, steps + 1)
    ]

    def both(c, z, w):
        found = predictive.cpc_steps(
            predictive.predictions(c, w), z, negatives, common_window=False
        )
        return found.loss.mean(), found.accuracy.mean()

    def loss(c, z, w):
        return predictive.cpc(predictive.predictions(c, w), z, negatives, common_window=False)

    value, grads = case.grad(loss, "c", "z", "W")
    return {"loss": value, "accuracy": both(case["c"], case["z"], case["W"])[1], **grads}


def cpc_image(case: Case) -> dict:
    knobs = {
        "offsets": case.numpy("offsets").tolist(),
        "scale": case["emb_scale"],
        "exclude_own": bool(case["exclude_same_image"]),
    }
    value, grads = case.grad(
        lambda c, z, w: predictive.cpc_grid(predictive.predictions(c, w), z, **knobs), "c", "z", "W"
    )
    steps = predictive.cpc_grid_steps(
        predictive.predictions(case["c"], case["W"]), case["z"], **knobs
    )
    return {"loss": value, "loss_k": steps.loss, "accuracy_k": steps.accuracy, **grads}


TABLE = {
    "byol-loss": Golden(byol_loss, f32=2e-6),
    "simsiam-loss": Golden(simsiam_loss, f32=2e-6),
    "dino-loss": Golden(dino_loss, f32=2e-6),
    "dino-lossmulti": Golden(dino_loss_multi, f32=5e-6),
    "dino-teachertemp": Golden(dino_teacher_temperature, f64=1e-12, f32=1e-6),
    "swav-sinkhorn": Golden(swav_sinkhorn, f32=2e-6),
    "swav-sinkhornmulti": Golden(swav_sinkhorn_multi, f32=2e-6),
    "swav-loss": Golden(swav, f32=5e-6),
    "swav-queue": Golden(swav, f32=1e-5),
    "swav-queuemulti": Golden(swav_multi, f32=5e-6),
    "dcv2-cluster": Golden(dcv2_cluster, f32=2e-6),
    "dcv2-clustermulti": Golden(dcv2_cluster_multi, f32=2e-6),
    "dcv2-loss": Golden(dcv2_loss, f32=5e-6),
    "dim-jsd": Golden(dim_jsd, f32=5e-6),
    "dim-infonce": Golden(dim_infonce, f32=1e-4),
    "dim-fdiv": Golden(dim_fdiv, f32=2e-6),
    "cpc-audio": Golden(cpc_audio, f32=2e-6, grad=1e-5),
    "cpc-perm": Golden(cpc_perm, f32=2e-6),
    "cpc-image": Golden(cpc_image),
}
