"""Memories, losses against them, clusters and distillation: the authors' numbers through our
functions."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.cluster import dbscan, kmeans, whitening
from cl_jax.heads.jigsaw import JigsawHead
from cl_jax.losses import assignments, clusters, distillation, nce
from cl_jax.memory import bank as banks
from cl_jax.memory import hybrid
from cl_jax.memory import prototypes as directions
from cl_jax.memory import queue as ring
from cl_jax.memory.queue import Queue
from tests.goldens import Golden
from tests.losses.compiled import as_given, compiled

# The authors' programs leave the normalising of these losses to their callers.
clusters, distillation, nce = map(as_given, (clusters, distillation, nce))
nce = compiled(nce)  # most adapters call a function of it for each modality and view: traced once

CALLS = ("_c1", "_c2")


def _in_turn(case, names, start, call):
    """What is held after both calls of a file, and their outputs: a loop, traced once.

    call(held, **{name: the call's array}) -> (held, {name: output})
    """
    given = {name: jnp.stack([case[name + c] for c in CALLS]) for name in names}
    held, out = lax.scan(lambda held, given: call(held, **given), start, given)
    return held, {name + c: x[i] for name, x in out.items() for i, c in enumerate(CALLS)}


def _start(case):
    return nce.init_normalizer(dtype=case.dtype)


def _instdisc_softmax(case):
    def call(memory, x, y):
        indices = jnp.broadcast_to(jnp.arange(memory.shape[0])[None], (x.shape[0], memory.shape[0]))
        loss = partial(nce.full_bank_softmax, temperature=case["temperature"])
        value, grad = jax.value_and_grad(loss)(x, memory, y)
        after = banks.update(memory, x, y, momentum=case["bank_momentum"])
        return after, {
            "logits": nce.bank_logits(x, memory, indices, temperature=case["temperature"]),
            "loss": value,
            "grad_x": grad,
            "memory_after": after,
        }

    _, out = _in_turn(case, ("x", "y"), case["memory"], call)
    return out | {"loss": out["loss_c1"]}


def _one_bank_nce(case):
    def call(held, x, y, idx=None, idx_drawn=None):
        memory, normalizer = held
        # The authors overwrite the first draw with the positive.
        indices = idx_drawn.at[:, 0].set(y) if idx is None else idx
        loss = jax.value_and_grad(partial(nce.nce, temperature=case["temperature"]), has_aux=True)
        (value, normalizer), grad = loss(x, memory, indices, normalizer)
        logits = nce.bank_logits(x, memory, indices, temperature=case["temperature"])
        memory = banks.update(memory, x, y, momentum=case["bank_momentum"])
        return (memory, normalizer), {
            "loss": value,
            "grad_x": grad,
            "prob": nce.probabilities(logits, normalizer),
            "memory_after": memory,
        }

    names = "x", "y", "idx" if "idx_c1" in case else "idx_drawn"
    (_, normalizer), out = _in_turn(case, names, (case["memory"], _start(case)), call)
    return out | {"loss": out["loss_c1"], "log_Z": normalizer.log_z}


def _insdis_softmax(case):
    def call(memory, x, y, idx):
        loss = jax.value_and_grad(partial(nce.bank_softmax, temperature=case["temperature"]))
        value, grad = loss(x, memory, idx)
        after = banks.update(memory, x, y, momentum=case["bank_momentum"])
        return after, {
            "loss": value,
            "grad_x": grad,
            "logits": nce.bank_logits(x, memory, idx, temperature=case["temperature"]),
            "memory_after": after,
        }

    _, out = _in_turn(case, ("x", "y", "idx"), case["memory"], call)
    return out | {"loss": out["loss_c1"]}


def _cmc_nce(case):
    knobs = {"temperature": case["temperature"]}

    def call(held, l, ab, y, idx):
        bank_l, bank_ab, normalizers = held
        loss = jax.value_and_grad(partial(nce.cross_nce, **knobs), (0, 1), has_aux=True)
        (value, after), grads = loss(l, ab, bank_l, bank_ab, idx, normalizers)
        out = {
            "loss": value,
            "grad_l": grads[0],
            "grad_ab": grads[1],
            "loss_l": nce.nce(l, bank_ab, idx, normalizers[0], **knobs)[0],
            "loss_ab": nce.nce(ab, bank_l, idx, normalizers[1], **knobs)[0],
            "prob_l": nce.probabilities(nce.bank_logits(l, bank_ab, idx, **knobs), after[0]),
            "prob_ab": nce.probabilities(nce.bank_logits(ab, bank_l, idx, **knobs), after[1]),
            "memory_l_after": banks.update(bank_l, l, y, momentum=case["bank_momentum"]),
            "memory_ab_after": banks.update(bank_ab, ab, y, momentum=case["bank_momentum"]),
        }
        return (out["memory_l_after"], out["memory_ab_after"], after), out

    start = case["memory_l"], case["memory_ab"], (_start(case), _start(case))
    (_, _, normalizers), out = _in_turn(case, ("l", "ab", "y", "idx"), start, call)
    return out | {
        "loss": out["loss_c1"],
        "log_Z_l": normalizers[0].log_z,
        "log_Z_ab": normalizers[1].log_z,
    }


def _cmc_softmax(case):
    knobs = {"temperature": case["temperature"]}

    def call(held, l, ab, y, idx):
        bank_l, bank_ab = held
        loss = jax.value_and_grad(partial(nce.cross_bank_softmax, **knobs), (0, 1))
        value, grads = loss(l, ab, bank_l, bank_ab, idx)
        out = {
            "loss": value,
            "grad_l": grads[0],
            "grad_ab": grads[1],
            "loss_l": nce.bank_softmax(l, bank_ab, idx, **knobs),
            "loss_ab": nce.bank_softmax(ab, bank_l, idx, **knobs),
            "logits_l": nce.bank_logits(l, bank_ab, idx, **knobs),
            "logits_ab": nce.bank_logits(ab, bank_l, idx, **knobs),
            "memory_l_after": banks.update(bank_l, l, y, momentum=case["bank_momentum"]),
            "memory_ab_after": banks.update(bank_ab, ab, y, momentum=case["bank_momentum"]),
        }
        return (out["memory_l_after"], out["memory_ab_after"]), out

    start = case["memory_l"], case["memory_ab"]
    _, out = _in_turn(case, ("l", "ab", "y", "idx"), start, call)
    return out | {"loss": out["loss_c1"]}


def _queue(rows, index):
    return Queue(rows, jnp.asarray(index, jnp.int32), jnp.asarray(rows.shape[0], jnp.int32))


def _cmcmoco(case, softmax):
    def call(held, q, k):
        queue, normalizer = held
        out = {}
        logits = nce.queue_logits(q, k, queue.rows, temperature=case["temperature"])
        if softmax:
            loss = jax.value_and_grad(partial(nce.queue_softmax, temperature=case["temperature"]))
            value, grad = loss(q, k, queue.rows)
            out["logits"] = logits
        else:
            loss = partial(
                nce.queue_nce,
                temperature=case["temperature"],
                num_data=case["n_data"],
                integer_z=True,
            )
            (value, normalizer), grad = jax.value_and_grad(loss, has_aux=True)(
                q, k, queue.rows, normalizer
            )
            out["prob"] = nce.probabilities(logits, normalizer)
        queue = ring.enqueue(queue, k)
        return (queue, normalizer), out | {
            "loss": value,
            "grad_q": grad,
            "queue_after": queue.rows,
            "queue_index_after": queue.pointer,
        }

    start = _queue(case["queue"], case["queue_index"]), _start(case)
    (_, normalizer), out = _in_turn(case, ("q", "k"), start, call)
    return out | {"loss": out["loss_c1"], "log_Z": normalizer.log_z}


def _infomin_one(case, query, loss, logits):
    """One modality: the loss with its jigsaw query if there is one, then each query alone."""
    names = [query] + ([query + "_jig"] if query + "_jig" in case else [])
    beta = {"beta": case["beta"]} if len(names) == 2 else {}
    value, grads = case.grad(lambda *z: loss(*z, **beta), *names)
    out = grads | {"loss": value}
    for i, name in enumerate(names, 1):
        out |= {f"loss_{i}": loss(case[name]), f"logits_{i}": logits(case[name])}
    return out


def _infomin_two(case, query, cross, loss, logits):
    """Two modalities: both views, then both jigsaw queries."""
    names = [query + "1", query + "2"]
    beta = {}
    if query + "1_jig" in case:
        names += [query + "1_jig", query + "2_jig"]
        beta = {"beta": case["beta"]}
    value, grads = case.grad(lambda *z: cross(*z, **beta), *names)
    out = grads | {"loss": value}
    for i, name in enumerate(names, 1):
        out |= {
            f"loss_{i}": loss(case[name], (i + 1) % 2),
            f"logits_{i}": logits(case[name], (i + 1) % 2),
        }
    return out


def _rgbmoco(case):
    knobs = {"temperature": case["temperature"]}
    rest = case["k"], case["memory"]
    out = _infomin_one(
        case,
        "q",
        lambda q, jig=None, **beta: nce.queue_softmax(q, *rest, jig, **knobs, **beta),
        lambda q: nce.queue_logits(q, *rest, **knobs),
    )
    after = ring.enqueue(
        _queue(case["memory"], case["queue_index"]), case["all_k"] if "all_k" in case else case["k"]
    )
    return out | {"memory_after": after.rows, "queue_index_after": after.pointer}


def _cmcmoco_infomin(case):
    knobs = {"temperature": case["temperature"]}
    keys = case["k1"], case["k2"], case["memory_1"], case["memory_2"]
    others = (keys[1], keys[3]), (keys[0], keys[2])
    out = _infomin_two(
        case,
        "q",
        lambda q1, q2, j1=None, j2=None, **beta: nce.cross_queue_softmax(
            q1, q2, *keys, j1, j2, **knobs, **beta
        ),
        lambda q, view: nce.queue_softmax(q, *others[view], **knobs),
        lambda q, view: nce.queue_logits(q, *others[view], **knobs),
    )
    for v in "12":
        queue = _queue(case[f"memory_{v}"], case["queue_index"])
        after = ring.enqueue(queue, case[f"all_k{v}"] if f"all_k{v}" in case else case[f"k{v}"])
        out |= {f"memory_{v}_after": after.rows, "queue_index_after": after.pointer}
    return out


def _rgbmem(case):
    knobs = {"temperature": case["temperature"]}
    rest = case["memory"], case["idx"]
    out = _infomin_one(
        case,
        "x",
        lambda x, jig=None, **beta: nce.bank_softmax(x, *rest, jig, **knobs, **beta),
        lambda x: nce.bank_logits(x, *rest, **knobs),
    )
    rows, ids = ("all_x", "all_y") if "all_x" in case else ("x", "y")
    return out | {
        "memory_after": banks.update(
            case["memory"], case[rows], case[ids], momentum=case["bank_momentum"]
        )
    }


def _cmcmem(case):
    knobs = {"temperature": case["temperature"]}
    stored = case["memory_1"], case["memory_2"]
    out = _infomin_two(
        case,
        "x",
        lambda x1, x2, j1=None, j2=None, **beta: nce.cross_bank_softmax(
            x1, x2, *stored, case["idx"], j1, j2, **knobs, **beta
        ),
        lambda x, view: nce.bank_softmax(x, stored[1 - view], case["idx"], **knobs),
        lambda x, view: nce.bank_logits(x, stored[1 - view], case["idx"], **knobs),
    )
    ids = case["all_y"] if "all_y" in case else case["y"]
    for v in "12":
        rows = case[f"all_x{v}"] if f"all_x{v}" in case else case[f"x{v}"]
        out[f"memory_{v}_after"] = banks.update(
            case[f"memory_{v}"], rows, ids, momentum=case["bank_momentum"]
        )
    return out


def _jigsawhead(case):
    mlp = "fc1_w2" in case
    head = JigsawHead(width=case["fc2_b"].shape[0], num_crops=case["k"], mlp=mlp)
    names = ["x", "fc1_w", "fc1_b", "fc2_w", "fc2_b"]

    def output(x, w1, b1, w2, b2):
        params = {"fc1": {"kernel": w1.T, "bias": b1}, "fc2": {"kernel": w2.T, "bias": b2}}
        if mlp:  # the authors' first layer is the hidden one
            params["fc1_hidden"] = params["fc1"]
            params["fc1"] = {"kernel": case["fc1_w2"].T, "bias": case["fc1_b2"]}
        return head.apply({"params": params}, x, case["perm"])

    value, grads = case.grad(lambda *a: jnp.sum(output(*a) * case["cotangent"]), *names)
    return grads | {"loss": value, "output": output(*(case[name] for name in names))}


def _crd(case, embed):
    knobs = {"temperature": case["temperature"]}
    heads = ("embed_s_w", "embed_s_b", "embed_t_w", "embed_t_b") if embed else ()
    inputs = ("f_s", "f_t") if embed else ("v_s", "v_t")

    def project(s, t, *params):
        if not embed:
            return s, t
        w_s, b_s, w_t, b_t = params
        return distillation.embed(s, w_s.T, b_s), distillation.embed(t, w_t.T, b_t)

    def call(held, y, idx, **given):
        bank_s, bank_t, normalizers = held
        args = [given[name] for name in inputs] + [case[name] for name in heads]

        def loss(*args):
            return distillation.crd(*project(*args), bank_s, bank_t, idx, normalizers, **knobs)

        (value, after), grads = jax.value_and_grad(loss, tuple(range(len(args))), has_aux=True)(
            *args
        )
        z_s, z_t = project(*args)
        out = {f"grad_{name}": grad for name, grad in zip((*inputs, *heads), grads)} | {
            "loss": value,
            "loss_s": nce.nce(z_s, bank_t, idx, normalizers[0], **knobs)[0],
            "loss_t": nce.nce(z_t, bank_s, idx, normalizers[1], **knobs)[0],
            "prob_s": nce.probabilities(nce.bank_logits(z_s, bank_t, idx, **knobs), after[0]),
            "prob_t": nce.probabilities(nce.bank_logits(z_t, bank_s, idx, **knobs), after[1]),
            "memory_v1_after": banks.update(bank_s, z_s, y, momentum=case["bank_momentum"]),
            "memory_v2_after": banks.update(bank_t, z_t, y, momentum=case["bank_momentum"]),
        }
        return (out["memory_v1_after"], out["memory_v2_after"], after), out

    start = case["memory_v1"], case["memory_v2"], (_start(case), _start(case))
    (_, _, normalizers), out = _in_turn(case, (*inputs, "y", "idx"), start, call)
    return out | {
        "loss": out["loss_c1"],
        **{f"grad_{name}": out[f"grad_{name}_c1"] for name in heads},
        "log_Z_s": normalizers[0].log_z,
        "log_Z_t": normalizers[1].log_z,
    }


def _crd_kd(case):
    loss = partial(distillation.knowledge_distillation, temperature=case["temperature"])
    value, grad = jax.value_and_grad(loss)(case["logits_s"], case["logits_t"])
    hard = assignments.cross_entropy(case["logits_s"], case["labels"])
    return {"loss": value, "grad_logits_s": grad, "loss_ce": hard}


def _simclrv2_distill(case):
    def loss(student):
        terms = distillation.soft_labels(
            student,
            case["teacher_logits"],
            case["labels"],
            case["labelled"],
            temperature=case["temperature"],
            alpha=case["alpha"],
        )
        return terms.loss, terms

    (value, terms), grad = jax.value_and_grad(loss, has_aux=True)(case["student_logits"])
    rows = distillation.soft_label_rows(
        case["student_logits"], case["teacher_logits"], temperature=case["temperature"]
    )
    return {
        "loss": value,
        "distill": terms.distill,
        "label_loss": terms.labels,
        "distill_per_example": rows,
        "grad_student_logits": grad,
    }


def _pcl_loss(case):
    queue = _queue(case["queue"].T, case["queue_ptr"])
    k = directions.normalise(case["im_k"])
    clusterings = [
        clusters.Clustering(
            case[f"centroids_{c}"],
            case[f"density_{c}"],
            case[f"im2cluster_{c}"][case["index"]],
            case[f"neg_ids_{c}"],
        )
        for c in range(case["num_clusterings"])
    ]

    def loss(im_q):
        q = directions.normalise(im_q)
        return clusters.pcl(q, k, queue.rows, clusterings, temperature=case["temperature"])

    value, grads = case.grad(loss, "im_q")
    q = directions.normalise(case["im_q"])
    out = {f"loss_proto_{c}": clusters.proto_nce(q, each) for c, each in enumerate(clusterings)}
    out |= {
        f"proto_logits_{c}": clusters.proto_logits(q, each) for c, each in enumerate(clusterings)
    }
    after = ring.enqueue(queue, k)
    alone = clusters.pcl(q, k, queue.rows, (), temperature=case["temperature"])
    return (
        out
        | grads
        | {
            "loss": value,
            "loss_inst": alone,
            "logits": nce.queue_logits(q, k, queue.rows, temperature=case["temperature"]),
            "queue_after": after.rows.T,
            "queue_ptr_after": after.pointer,
        }
    )


def _mice_elbo(case):
    def loss(f, g, experts):
        terms = clusters.mice_terms(
            f,
            case["v"],
            g,
            case["queue"],
            case["gating_prototype"],
            experts,
            temperature=case["tau"],
            released_gradient=True,
        )
        return clusters.mice_of_terms(terms), terms

    args = case["f"], case["g"], case["expert_prototype"]
    (value, terms), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*args)
    after = ring.enqueue(_queue(case["queue"], case["queue_index"]), case["v"])
    return {
        "loss": value,
        "grad_f": grads[0],
        "grad_g": grads[1],
        "grad_expert_prototype": grads[2],
        "posterior": terms.posterior,
        "log_pi": terms.log_gate,
        "log_phi_pos": terms.log_likelihood,
        "expert_logits": clusters.mice_logits(
            args[0], case["v"], case["queue"], args[2], temperature=case["tau"]
        ),
        "queue_after": after.rows,
        "queue_index_after": after.pointer,
    }


def _mice_prototypes(case):
    sums, winners = zip(
        *(
            clusters.expert_sums(case[f"posterior_{b}"], case[f"v_{b}"])
            for b in range(case["num_batches"])
        )
    )
    return {
        "center_sum": sum(sums),
        "labels": jnp.concatenate(winners),
        "expert_prototype_after": clusters.expert_prototypes(sum(sums)),
    }


def _mice_simplex(case):
    gates = clusters.simplex(case["n_class"], case["dim"])
    return {"gram": gates @ gates.T}


def _spcl_memory(case):
    labels, num_labels = case["memory_labels"], int(case.numpy("memory_labels").max()) + 1
    rest = case["memory"], labels
    knobs = {"temperature": case["temperature"], "num_labels": num_labels}
    value, grads = case.grad(lambda f: clusters.spcl(f, *rest, case["index"], **knobs), "f")
    logits, present = clusters.label_logits(case["f"], *rest, **knobs)
    after = hybrid.update(
        hybrid.HybridMemory(*rest), case["f"], case["index"], momentum=case["memory_momentum"]
    )
    return grads | {
        "loss": value,
        "label_logits": logits,
        "targets": labels[case["index"]],
        "prob": jnp.exp(clusters.label_log_probabilities(logits, present)),
        "memory_after_backward": after.rows,
    }


def _pcl_kmeans(case):
    out = {}
    for c, num_clusters in enumerate(case.numpy("num_cluster").tolist()):
        features, raw = case["features"], jnp.asarray(case.numpy(f"raw_centroids_{c}"))
        assignment, distance = kmeans.assign(features, raw, block_size=64)
        # Which of the many fair clusterings is found hangs on the first rows: ours must be as good
        # as theirs.
        ours = kmeans.kmeans(
            jax.random.key(c), features, num_clusters, restarts=10, start="spread", block_size=64
        ).objective
        out |= {
            f"raw_centroids_{c}": raw,
            f"centroids_{c}": directions.normalise(raw),
            f"im2cluster_{c}": assignment,
            f"sqdist_{c}": distance,
            f"counts_{c}": jnp.bincount(assignment, length=num_clusters),
            f"objective_{c}": jnp.maximum(ours, case[f"objective_{c}"]),
            f"density_{c}": kmeans.concentration(
                jnp.asarray(case.numpy(f"sqdist_{c}")),
                assignment,
                num_clusters,
                temperature=case["temperature"],
            ),
        }
    return out


def _deepcluster_pca(case):
    ours, theirs = whitening.pca_whiten(case["features"], case["pca"]), case.numpy("features_out")
    return {"features_out": ours * jnp.sign(jnp.sum(ours * theirs, axis=0))[None]}


def _spcl_jaccard(case):
    features = case.numpy("features")
    return {
        "initial_rank": dbscan.nearest(features, case["k1"]),
        "jaccard": dbscan.jaccard_distance(features, k1=case["k1"], k2=case["k2"]),
    }


def _spcl_selfpaced(case):
    eps, gap = case["eps"], case["eps_gap"]
    names = ("", "_tight", "_loose")
    labels = [case.numpy(f"cluster_id{name}") for name in names]
    if "distance" in case:
        labels = [dbscan.dbscan(case.numpy("distance"), eps=e) for e in (eps, eps - gap, eps + gap)]
    labels = [dbscan.number_outliers(each) for each in labels]
    found = dbscan.self_paced(
        *labels, threshold=case["given_threshold"] if "given_threshold" in case else None
    )
    return {f"expanded_labels{name}": each for name, each in zip(names, labels)} | {
        "R_comp": found.compactness,
        "R_indep": found.independence,
        "cluster_R_comp": found.cluster_compactness,
        "cluster_R_indep": found.cluster_independence,
        "indep_threshold": found.threshold,
        "final_labels": found.labels,
    }


TABLE = {
    "instdisc-softmax": Golden(_instdisc_softmax, f32=5e-6),
    "instdisc-nce": Golden(_one_bank_nce, f32=5e-5, raised=("Z",)),
    # Z overflows float32 at temperature 0.01.
    "insdis-nce": Golden(_one_bank_nce, f32=5e-6, loss=2e-6, grad=2e-6, raised=("Z",)),
    "insdis-softmax": Golden(_insdis_softmax, f32=2e-6),
    # Probabilities reach 6.7e4: exponentials of logits near 20, whose own rounding, by dot product
    # and temperature, is a few float32 steps.
    "cmc-nce": Golden(
        _cmc_nce,
        f32=1e-5,
        grad=5e-6,
        raised=("Z_l", "Z_ab"),
        bounds={f"prob_{v}_{c}": (1e-9, 3e-5) for v in ("l", "ab") for c in ("c1", "c2")},
    ),
    "cmc-softmax": Golden(_cmc_softmax, f32=2e-6),
    "cmcmoco-nce": Golden(
        lambda case: _cmcmoco(case, softmax=False), f32=1e-5, loss=2e-6, grad=2e-6, raised=("Z",)
    ),
    "cmcmoco-softmax": Golden(lambda case: _cmcmoco(case, softmax=True), f32=2e-6),
    "infomin-rgbmoco": Golden(_rgbmoco, f32=2e-6, loss=5e-6, grad=5e-6),
    "infomin-rgbmocojig": Golden(_rgbmoco, f32=2e-6, grad=5e-6),
    "infomin-cmcmoco": Golden(_cmcmoco_infomin, f32=2e-6),
    "infomin-cmcmocojig": Golden(_cmcmoco_infomin, f32=2e-6),
    "infomin-rgbmem": Golden(_rgbmem, f32=2e-6),
    "infomin-rgbmemjig": Golden(_rgbmem, f32=2e-6),
    "infomin-cmcmem": Golden(_cmcmem, f32=2e-6, grad=5e-6),
    "infomin-cmcmemjig": Golden(_cmcmem, f32=2e-6),
    "infomin-jigsawhead": Golden(_jigsawhead, f32=2e-6),
    "crd-memory": Golden(
        partial(_crd, embed=False), f32=1e-5, loss=2e-6, grad=2e-6, raised=("Z_s", "Z_t")
    ),
    "crd-embed": Golden(
        partial(_crd, embed=True), f32=1e-5, loss=2e-6, grad=5e-6, raised=("Z_s", "Z_t")
    ),
    "crd-kd": Golden(_crd_kd, f32=1e-5, grad=5e-6),
    "simclrv2-distill": Golden(_simclrv2_distill, f32=5e-6),
    "pcl-loss": Golden(_pcl_loss, f32=2e-6, loss=1e-5, grad=5e-6),
    "mice-elbo": Golden(_mice_elbo, f32=2e-6, grad=5e-6),
    "mice-prototypes": Golden(_mice_prototypes, f32=2e-6),
    "mice-simplex": Golden(_mice_simplex, f64=1e-5, f32=None),
    "spcl-memory": Golden(_spcl_memory, f32=2e-6, grad=1e-5),
    # k-means of the authors starts from rows of their own random numbers: the objective is held to
    # 5 %.
    "pcl-kmeans": Golden(
        _pcl_kmeans, f64=2e-6, f32=None, bounds={f"objective_{c}": (0.05, 0.05) for c in range(9)}
    ),
    # faiss works in float32 and is itself 5e-4 from the exact result.
    "deepcluster-pca": Golden(_deepcluster_pca, f64=2e-3, f32=None, jit=False),
    "spcl-jaccard": Golden(_spcl_jaccard, f64=2e-6, f32=None, jit=False),
    "spcl-selfpaced": Golden(_spcl_selfpaced, f64=1e-6, f32=None, jit=False),
}
