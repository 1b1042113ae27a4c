"""The cases of `headline_losses.py`: each headline loss, its inputs, and the same loss in other
libraries."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cl_jax import losses

T = 0.1
CLASSES = 64
PROTOTYPES = 1024
QUEUE = 16384
CLUSTERS = 4096


class Peer(NamedTuple):
    """name, the module it needs, build(torch) -> function of the inputs, bytes held for N rows."""

    name: str
    needs: str
    build: Callable[..., Callable]
    holds: Callable[[int], float]


def plain(loss):
    return Peer("PyTorch plain", "torch", loss, lambda n: 24 * n * n)


def library(name, needs, build, holds=lambda n: 28 * n * n):
    return Peer(name, needs, build, holds)


def of_lightly(name, **knobs):
    importlib.import_module("_torch").let_torchvision_import()
    return getattr(importlib.import_module("lightly.loss"), name)(**knobs)


def of_swav():
    loss = of_lightly("SwaVLoss", temperature=T)
    return lambda a, b: loss([a, b], [])


def of_swav_in_one_array():
    loss = of_lightly("SwaVLoss", temperature=T)
    return lambda scores: loss(list(scores.unbind()), [])


def of_metric_learning(name, **knobs):
    return getattr(importlib.import_module("pytorch_metric_learning.losses"), name)(**knobs)


def torch_ntxent(torch):
    def loss(a, b):
        z = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
        n = len(z)
        s = (z @ z.T / T).fill_diagonal_(-torch.inf)
        return torch.nn.functional.cross_entropy(s, torch.arange(n).roll(n // 2))

    return loss


def torch_clip(torch):
    def loss(a, b):
        a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
        s = 10 * a @ b.T
        own = torch.arange(len(s))
        cross = torch.nn.functional.cross_entropy
        return (cross(s, own) + cross(s.T, own)) / 2

    return loss


def torch_siglip(torch):
    def loss(a, b):
        a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
        s = 10 * a @ b.T - 10
        y = 2 * torch.eye(len(s)) - 1
        return -torch.nn.functional.logsigmoid(y * s).sum() / len(s)

    return loss


def torch_queue(torch):
    def loss(a, b, queue):
        a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
        s = torch.cat([(a * b).sum(1, keepdim=True), a @ queue.T], 1) / T
        return torch.nn.functional.cross_entropy(s, torch.zeros(len(s), dtype=torch.long))

    return loss


def torch_supcon(torch):
    def loss(a, b, labels):
        z = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
        y = torch.cat([labels, labels])
        n = len(z)
        s = z @ z.T / T
        off = ~torch.eye(n, dtype=torch.bool)
        log_p = s - torch.logsumexp(s.masked_fill(~off, -torch.inf), 1, keepdim=True)
        positive = (y[:, None] == y[None]) & off
        return -((log_p * positive).sum(1) / positive.sum(1)).mean()

    return loss


def metric_learning_supcon(torch):
    loss = of_metric_learning("SupConLoss", temperature=T)
    return lambda a, b, y: loss(torch.cat([a, b]), torch.cat([y, y]))


def torch_simsiam(torch):
    def loss(a, b):
        cosine = torch.nn.functional.cosine_similarity
        return -(cosine(a, b.detach()).mean() + cosine(b, a.detach()).mean()) / 2

    return loss


def torch_dino(torch):
    def loss(a, b):
        log_p = torch.log_softmax(torch.stack([a, b]) / 0.1, dim=-1)
        p = torch.softmax(torch.stack([a, b]).detach() / 0.04, dim=-1)
        return -((p[0] * log_p[1]).sum(1).mean() + (p[1] * log_p[0]).sum(1).mean()) / 2

    return loss


def torch_dino_in_one_array(torch):
    """The same where all views come as one array, with a teacher's of its own."""

    def loss(student, teacher):
        log_p = torch.log_softmax(student / 0.1, dim=-1)
        p = torch.softmax(teacher.detach() / 0.04, dim=-1)
        return -((p[0] * log_p[1]).sum(1).mean() + (p[1] * log_p[0]).sum(1).mean()) / 2

    return loss


def torch_cross(torch):
    """InfoNCE in the batch: each query against all keys."""

    def loss(a, b):
        a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
        return torch.nn.functional.cross_entropy(a @ b.T / T, torch.arange(len(a)))

    return loss


def torch_moco_v3(torch):
    def loss(a, b):
        cross = torch_cross(torch)
        return 2 * T * (cross(a, b.detach()) + cross(b, a.detach()))

    return loss


def torch_nnclr(torch):
    cross = torch_cross(torch)
    return lambda a, b: (cross(b.detach(), a) + cross(a.detach(), b)) / 2


def torch_hcl(torch):
    """The authors' form: the re-weighted sum by exponentials, tau+ .1, beta 1."""

    def loss(a, b):
        x = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
        n = len(x)
        own = torch.arange(n)
        s = torch.exp(x @ x.T / 0.5)
        off = torch.ones(n, n, dtype=torch.bool)
        off[own, own] = off[own, own.roll(n // 2)] = False
        pos = s[own, own.roll(n // 2)]
        neg = s.masked_select(off).view(n, -1)
        count = n - 2
        reweighted = (neg * neg).sum(1) / neg.mean(1)
        ng = (reweighted - 0.1 * count * pos) / 0.9
        ng = torch.clamp(ng, min=count * float(np.exp(-1 / 0.5)))
        return -torch.log(pos / (pos + ng)).mean()

    return loss


def torch_uniformity(torch):
    def loss(a, b):
        x = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
        return torch.pdist(x).pow(2).mul(-2).exp().mean().log()

    return loss


def torch_byol(torch):
    def loss(a, b):
        cosine = torch.nn.functional.cosine_similarity
        return 4 - 2 * (cosine(a, b.detach()).mean() + cosine(b, a.detach()).mean())

    return loss


def torch_views(torch):
    """NT-Xent of four views, of which half of each array is one."""

    def loss(a, b):
        z = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
        n = len(z)
        example = torch.arange(n) % (n // 4)
        s = z @ z.T / T
        off = ~torch.eye(n, dtype=torch.bool)
        log_p = s - torch.logsumexp(s.masked_fill(~off, -torch.inf), 1, keepdim=True)
        positive = (example[:, None] == example[None]) & off
        return -((log_p * positive).sum(1) / 3).mean()

    return loss


def torch_inva_spread(torch):
    """The symmetric form of the authors' code: keys are constants."""

    def loss(a, b):
        x = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
        n = len(x)
        off = ~torch.eye(n, dtype=torch.bool)
        log_p = (x @ x.detach().T / T).masked_fill(~off, -torch.inf).log_softmax(1)
        partner = torch.arange(n).roll(n // 2)
        own = log_p[torch.arange(n), partner]
        others = off.clone()
        others[torch.arange(n), partner] = False
        rest = torch.log1p(-log_p.exp().masked_fill(~others, 0)).sum(1)
        return -(own + rest).mean()

    return loss


def torch_alignment(torch):
    normalize = torch.nn.functional.normalize
    return lambda a, b: (normalize(a, dim=1) - normalize(b, dim=1)).pow(2).sum(1).mean()


def torch_cpc(torch):
    """Each prediction against all latents; two steps, over the window that both have."""

    def loss(p, z):
        steps, batch, times, width = p.shape
        window = times - steps
        at = (torch.arange(batch)[:, None] * times + torch.arange(window)[None]).reshape(-1)
        flat = z.reshape(-1, width)
        terms = [
            torch.nn.functional.cross_entropy(
                p[k, :, :window].reshape(-1, width) @ flat.T / T, at + k + 1
            )
            for k in range(steps)
        ]
        return sum(terms) / steps

    return loss


def torch_kcl(torch):
    def loss(a, b, queue, labels, queue_labels):
        a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a, b.detach()))
        s = torch.cat([(a * b).sum(1, keepdim=True), a @ queue.T], 1) / T
        own = torch.ones(len(a), 1, dtype=torch.bool)
        positive = torch.cat([own, labels[:, None] == queue_labels[None]], 1)
        return -((s.log_softmax(1) * positive).sum(1) / positive.sum(1)).mean()

    return loss


def torch_pcl(torch):
    """The prototypes of the batch's clusters, and drawn ones, each with its own temperature."""
    of_queue = torch_queue(torch)

    def loss(a, b, queue, prototypes, concentration, assignment, negatives):
        columns = torch.cat([assignment, negatives])
        keys = prototypes[columns] / concentration[columns, None]
        s = torch.nn.functional.normalize(a, dim=1) @ keys.T
        of_clusters = torch.nn.functional.cross_entropy(s, torch.arange(len(s)))
        return of_queue(a, b.detach(), queue) + of_clusters

    return loss


def torch_deepcluster_v2(torch):
    def loss(a, b, labels):
        cross = torch.nn.functional.cross_entropy
        return (cross(a / T, labels) + cross(b / T, labels)) / 2

    return loss


def torch_soft_labels(torch):
    def loss(a, b):
        return -(torch.softmax(b.detach(), 1) * torch.log_softmax(a, 1)).sum(1).mean()

    return loss


def swav_with_codes(scores):
    codes = losses.swav_codes(scores, epsilon=0.05, iterations=3)
    return losses.swav(scores, codes, temperature=T)


class Loss(NamedTuple):
    """ours(a, b, rest...), what the inputs are, and who else has it."""

    ours: Callable
    inputs: str
    peers: tuple[Peer, ...]


def both(f):
    """A lightly loss of two views."""
    return lambda torch: f()


LOSSES = {
    "nt_xent": Loss(
        lambda a, b: losses.nt_xent(a, b, temperature=T),
        "views",
        (
            plain(torch_ntxent),
            library("lightly", "lightly", both(lambda: of_lightly("NTXentLoss", temperature=T))),
        ),
    ),
    "supcon": Loss(
        lambda a, b, y: losses.supcon(jnp.stack([a, b], 1), y, temperature=T),
        "views and labels",
        (
            plain(torch_supcon),
            library(
                "pytorch-metric-learning",
                "pytorch_metric_learning",
                metric_learning_supcon,
                lambda n: 40 * n * n,
            ),
        ),
    ),
    "nt_xent_views": Loss(
        lambda a, b: losses.nt_xent_views(
            jnp.concatenate([x.reshape(2, -1, x.shape[1]) for x in (a, b)]), temperature=T
        ),
        "views",
        (plain(torch_views),),
    ),
    "inva_spread": Loss(
        lambda a, b: losses.inva_spread(a, b, temperature=T),
        "views",
        (plain(torch_inva_spread)._replace(holds=lambda n: 32 * n * n),),
    ),
    "simcse": Loss(
        lambda a, b: losses.simcse(a, b, temperature=T),
        "views",
        (plain(torch_cross)._replace(holds=lambda n: 6 * n * n),),
    ),
    "alignment": Loss(
        lambda a, b: losses.alignment(a, b),
        "views",
        (plain(torch_alignment)._replace(holds=lambda n: 0),),
    ),
    "cross_entropy": Loss(
        lambda a, y: losses.cross_entropy(a, y),
        "logits and labels",
        (plain(lambda torch: torch.nn.functional.cross_entropy)._replace(holds=lambda n: 0),),
    ),
    "soft_labels": Loss(
        lambda a, b: losses.soft_labels(a, b, temperature=1.0).loss,
        "logits and a teacher's",
        (plain(torch_soft_labels)._replace(holds=lambda n: 0),),
    ),
    "swav with its codes": Loss(
        lambda a, b: swav_with_codes([a, b]),
        "scores",
        (library("lightly", "lightly", lambda torch: of_swav(), lambda n: 0),),
    ),
    "swav with its codes in one array": Loss(
        lambda scores: swav_with_codes(scores),
        "scores in one array",
        (library("lightly", "lightly", lambda torch: of_swav_in_one_array(), lambda n: 0),),
    ),
    "deepcluster_v2": Loss(
        lambda a, b, y: losses.deepcluster_v2([[a, b]], [y], temperature=T),
        "scores and labels",
        (plain(torch_deepcluster_v2)._replace(holds=lambda n: 0),),
    ),
    "cpc": Loss(
        lambda p, z: losses.cpc(p, z, scale=1 / T),
        "sequences",
        (plain(torch_cpc)._replace(holds=lambda n: 8 * n * n),),
    ),
    "kcl": Loss(
        lambda a, b, q, y, of_queue: losses.positives.kcl(a, b, q, y, of_queue, temperature=T),
        "views, queue and labels",
        (plain(torch_kcl)._replace(holds=lambda n: 16 * n * QUEUE),),
    ),
    "pcl": Loss(
        lambda a, b, q, *clustering: losses.pcl(
            a, b, q, [losses.clusters.Clustering(*clustering)], temperature=T
        ),
        "views, queue and clusters",
        (plain(torch_pcl)._replace(holds=lambda n: 12 * n * QUEUE + 6 * n * n),),
    ),
    "info_nce with a queue": Loss(
        lambda a, b, q: losses.info_nce(a, b, q, temperature=T),
        "views and queue",
        (plain(torch_queue)._replace(holds=lambda n: 12 * n * QUEUE),),
    ),
    "clip": Loss(
        lambda a, b: losses.clip(a, b, logit_scale=10.0),
        "views",
        (plain(torch_clip)._replace(holds=lambda n: 6 * n * n),),
    ),
    "siglip": Loss(
        lambda a, b: losses.siglip(a, b, logit_scale=10.0, logit_bias=-10.0),
        "views",
        (plain(torch_siglip)._replace(holds=lambda n: 6 * n * n),),
    ),
    "simsiam": Loss(
        lambda a, b: losses.simsiam(a, b, a, b),
        "views",
        (plain(torch_simsiam)._replace(holds=lambda n: 0),),
    ),
    "dino": Loss(
        lambda a, b: losses.dino(
            [a, b],
            [a, b],
            jnp.zeros(PROTOTYPES),
            student_temperature=0.1,
            teacher_temperature=0.04,
        ),
        "logits",
        (plain(torch_dino)._replace(holds=lambda n: 0),),
    ),
    "dino in one array": Loss(
        lambda student, teacher: losses.dino(
            student,
            teacher,
            jnp.zeros(PROTOTYPES),
            student_temperature=0.1,
            teacher_temperature=0.04,
        ),
        "logits in one array",
        (plain(torch_dino_in_one_array)._replace(holds=lambda n: 0),),
    ),
    "vicreg": Loss(
        lambda a, b: losses.vicreg(a, b),
        "views",
        (library("lightly", "lightly", both(lambda: of_lightly("VICRegLoss")), lambda n: 0),),
    ),
    "barlow_twins": Loss(
        lambda a, b: losses.barlow_twins(a, b),
        "views",
        (library("lightly", "lightly", both(lambda: of_lightly("BarlowTwinsLoss")), lambda n: 0),),
    ),
    "dcl": Loss(
        lambda a, b: losses.dcl(a, b, temperature=T),
        "views",
        (library("lightly", "lightly", both(lambda: of_lightly("DCLLoss", temperature=T))),),
    ),
    "hcl": Loss(
        lambda a, b: losses.hcl(a, b, temperature=0.5),
        "views",
        (plain(torch_hcl)._replace(holds=lambda n: 32 * n * n),),
    ),
    "moco_v3": Loss(
        lambda a, b: losses.moco_v3(a, b, a, b, temperature=T),
        "views",
        (plain(torch_moco_v3)._replace(holds=lambda n: 6 * n * n),),
    ),
    "nnclr": Loss(
        lambda a, b: losses.nnclr(a, b, a, b, temperature=T),
        "views",
        (plain(torch_nnclr)._replace(holds=lambda n: 6 * n * n),),
    ),
    "uniformity": Loss(
        lambda a, b: losses.uniformity(jnp.concatenate([a, b]), t=2.0),
        "views",
        (plain(torch_uniformity)._replace(holds=lambda n: 10 * n * n),),
    ),
    "byol": Loss(
        lambda a, b: losses.byol(a, b, a, b),
        "views",
        (plain(torch_byol)._replace(holds=lambda n: 0),),
    ),
}


def inputs_of(kind: str, rows: int, width: int) -> list[np.ndarray]:
    """Both views count: `rows` rows are rows / 2 examples; predictions and latents too."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    if kind == "logits in one array":
        return list(normal(2, 2, rows // 2, PROTOTYPES))
    if kind == "scores in one array":
        return [0.1 * normal(2, rows // 2, PROTOTYPES)]
    if kind == "logits and labels":
        return [normal(rows, PROTOTYPES), rng.integers(0, PROTOTYPES, rows)]
    if kind == "sequences":  # of 16 times, from which the next two are predicted
        p, z = normal(2, rows // 32, 16, width), normal(rows // 32, 16, width)
        return [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (p, z)]
    of_prototypes = kind.startswith(("logits", "scores"))
    given = list(normal(2, rows // 2, PROTOTYPES if of_prototypes else width))
    if kind.startswith("scores"):  # cosines with prototypes
        given = [0.1 * x for x in given]
    if kind == "scores and labels":
        given.append(rng.integers(0, PROTOTYPES, rows // 2))
    if kind == "views and labels":
        given.append(rng.integers(0, CLASSES, rows // 2))
    if kind.startswith("views") and "queue" in kind:
        queue = normal(QUEUE, width)
        given.append(queue / np.linalg.norm(queue, axis=1, keepdims=True))
    if kind == "views, queue and labels":
        given += [rng.integers(0, CLASSES, count) for count in (rows // 2, QUEUE)]
    if kind == "views, queue and clusters":
        prototypes = normal(CLUSTERS, width)
        given.append(prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True))
        given.append(0.2 * np.ones(CLUSTERS, np.float32))
        given += [rng.integers(0, CLUSTERS, count) for count in (rows // 2, CLUSTERS // 2)]
    return given


# Inputs of which the first alone receives a gradient.
ONE_GRADIENT = {
    "logits in one array",
    "scores in one array",
    "logits and labels",
    "logits and a teacher's",
    "views, queue and labels",
    "views, queue and clusters",
}
