"""The peer's side, in PyTorch: losses and heads of lightly and pytorch-metric-learning, around a
ResNet of `benchmarks/_torch.py`.

python benchmarks/parity/peer.py CASE float32|float64 FOLDER: reads FOLDER/CASE.<type>.inputs.npz
and writes FOLDER/CASE.<type>.peer.npz, under the names of our tree. With float64 after that, the
same inputs are computed in float64 and written to FOLDER/CASE.<type>.control.npz: what rounding
alone does to the peer.

Parameters that only one side has are held where they change nothing: the last beta of lightly's
SimCLR head, the affine part of its last norm in MoCo v3's, the biases of BYOL's last layers and of
SwAV's prototypes. Biases in front of a batch norm, which it cancels, are not compared.
"""

import copy
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cases

if __name__ == "__main__":  # before PyTorch, which --help does not need
    WORDS = cases.words(__doc__, **cases.OF_STEPS, computed="optional: float64 after float32")

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from _torch import ResNet, let_torchvision_import

let_torchvision_import()

from lightly import loss as losses
from lightly.models.modules import heads
from lightly.models.modules.nn_memory_bank import NNMemoryBankModule
from lightly.models.utils import update_momentum

# Parameters --------------------------------------


def encoder_names(encoder):
    """[(our path, parameter)] of the encoder."""
    found = [("stem_conv1/kernel", encoder.stem[0].weight), *norm("stem_norm1", encoder.stem[1])]
    for number, block in enumerate(encoder.blocks, start=1):
        at = f"stage{number}_block1"
        for place, (conv, bn) in enumerate(zip(block.convs, block.norms), start=1):
            found += [(f"{at}/conv{place}/kernel", conv.weight), *norm(f"{at}/norm{place}", bn)]
        if isinstance(block.shortcut, nn.Sequential):
            found.append((f"{at}/shortcut_conv/kernel", block.shortcut[0].weight))
            found += norm(f"{at}/shortcut_norm", block.shortcut[1])
    return found


def norm(path, module):
    return (
        []
        if module.weight is None
        else [(f"{path}/scale", module.weight), (f"{path}/bias", module.bias)]
    )


def head_names(head):
    """[(our path, parameter)] of a head of linear layers and batch norms."""
    found, number = [], 0
    for module in head.layers:
        if isinstance(module, nn.Linear):
            number += 1
            found.append((f"dense{number}/kernel", module.weight))
            if module.bias is not None:
                found.append((f"dense{number}/bias", module.bias))
        elif isinstance(module, nn.BatchNorm1d):
            found += norm(f"norm{number}", module)
    return found


def to_ours(value):
    """A PyTorch weight in our layout."""
    array = value.detach().numpy()
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0).copy()
    return array.T.copy() if array.ndim == 2 else array.copy()


def hold(parameter, value):
    with torch.no_grad():
        parameter.fill_(value)
    parameter.requires_grad_(False)


class Network(nn.Module):
    """Encoder and head. Views of one side go through the encoder together where `together`, all
    through the head at once."""

    def __init__(self, head, together=True):
        super().__init__()
        self.encoder = ResNet(cases.DEPTH, cases.WIDTH, "cifar")
        self.head, self.together = head, together

    def forward(self, views):
        if not self.together:
            return [self.head(self.pooled(view)) for view in views]
        sizes = sorted({view.shape[-1] for view in views}, reverse=True)
        groups = [torch.cat([v for v in views if v.shape[-1] == side]) for side in sizes]
        return list(self.head(torch.cat([self.pooled(g) for g in groups])).chunk(len(views)))

    def pooled(self, images):  # the encoder's own ends in float32
        return self.encoder.blocks(self.encoder.stem(images)).mean((2, 3))

    def names(self, prefix=""):
        return [(f"{prefix}encoder/{path}", p) for path, p in encoder_names(self.encoder)] + [
            (f"{prefix}head/{path}", p) for path, p in self.of_head()
        ]

    def of_head(self):
        if not hasattr(self.head, "last_layer"):
            return head_names(self.head)
        return [(f"mlp/{path}", p) for path, p in head_names(self.head)] + [
            ("last_layer/v", self.head.last_layer.weight_v)
        ]


# Methods --------------------------------------


class Peer:
    """One method: `loss(views, batch)`, then `after(step)` once the optimiser has moved."""

    predictor = None
    target = None
    prefix = ""
    total = cases.STEPS

    def __init__(self, settings):
        self.s = settings

    def names(self):
        found = self.network.names(self.prefix)
        if self.predictor is not None:
            found += [(f"predictor/{path}", p) for path, p in head_names(self.predictor)]
        return found

    def target_names(self):
        return [] if self.target is None else self.target.names()

    def slow_copy(self):
        self.target = copy.deepcopy(self.network)
        for parameter in self.target.parameters():
            parameter.requires_grad_(False)

    def read(self, memory):
        """Takes the initial memory over."""

    def memory(self):
        return {}

    def after(self, step):
        pass


class SimCLR(Peer):
    def __init__(self, s):
        super().__init__(s)
        head = heads.SimCLRProjectionHead(cases.FEATURES, cases.FEATURES, s["out_dim"])
        hold(head.layers[-1].bias, 0.0)
        self.network, self.criterion = Network(head), losses.NTXentLoss(s["temperature"])

    def loss(self, views, batch):
        return self.criterion(*self.network(views))


class MoCoV2(Peer):
    def __init__(self, s):
        super().__init__(s)
        head = heads.MoCoProjectionHead(cases.FEATURES, cases.FEATURES, s["out_dim"])
        self.network = Network(head, together=False)
        self.criterion = losses.NTXentLoss(s["temperature"], (s["queue_size"], s["out_dim"]))
        self.slow_copy()

    def read(self, memory):
        self.criterion.memory_bank.bank = torch.from_numpy(memory["rows"]).clone()

    def memory(self):
        return {"rows": self.criterion.memory_bank.bank}

    def loss(self, views, batch):
        (query,) = self.network(views[:1])
        with torch.no_grad():
            (key,) = self.target(views[1:])
        return self.criterion(query, key)

    def after(self, step):
        update_momentum(self.network, self.target, self.s["momentum"])


class Cosine(Peer):
    """A target whose momentum rises to 1 by a half cosine over the run."""

    prefix = "network/"
    ahead = 0

    def after(self, step):
        along = (step + self.ahead) / self.total
        m = 1 - (1 - self.s["momentum"]) * (1 + math.cos(math.pi * along)) / 2
        update_momentum(self.network, self.target, m)


class MoCoV3(Cosine):
    ahead = 1

    def __init__(self, s):
        super().__init__(s)
        head = heads.MoCoProjectionHead(
            cases.FEATURES, s["hidden_dim"], s["out_dim"], batch_norm=True
        )
        hold(head.layers[-1].weight, 1.0)
        hold(head.layers[-1].bias, 0.0)
        self.network = Network(head, together=False)
        width = s["hidden_dim"]
        self.predictor = heads.ProjectionHead(
            [
                (s["out_dim"], width, nn.BatchNorm1d(width), nn.ReLU()),
                (width, s["out_dim"], None, None, False),
            ]
        )
        self.slow_copy()

    def loss(self, views, batch):
        q = [self.predictor(z) for z in self.network(views)]
        with torch.no_grad():
            k = self.target(views)
        t = self.s["temperature"]

        def contrast(q, k):
            logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / t
            return 2 * t * F.cross_entropy(logits, torch.arange(len(q)))

        return contrast(q[0], k[1]) + contrast(q[1], k[0])


class BYOL(Cosine):
    def __init__(self, s):
        super().__init__(s)
        width, out = s["hidden_dim"], s["out_dim"]
        self.network = Network(heads.BYOLProjectionHead(cases.FEATURES, width, out), together=False)
        self.predictor = heads.BYOLPredictionHead(out, width, out)
        for head in (self.network.head, self.predictor):
            hold(head.layers[-1].bias, 0.0)
        self.criterion = losses.NegativeCosineSimilarity()
        self.slow_copy()

    def loss(self, views, batch):
        p = [self.predictor(z) for z in self.network(views)]
        with torch.no_grad():
            z = self.target(views)
        mean = 0.5 * (self.criterion(p[0], z[1]) + self.criterion(p[1], z[0]))
        return 4 + 4 * mean  # the paper's squared distances of both directions


class SimSiam(Peer):
    prefix = "network/"

    def __init__(self, s):
        super().__init__(s)
        out = s["out_dim"]
        self.network = Network(
            heads.SimSiamProjectionHead(cases.FEATURES, cases.FEATURES, out), together=False
        )
        self.predictor = heads.SimSiamPredictionHead(out, s["hidden_dim"], out)
        self.criterion = losses.NegativeCosineSimilarity()

    def loss(self, views, batch):
        z = self.network(views)
        p = [self.predictor(one) for one in z]
        a = self.criterion(p[0], z[1].detach())
        return 0.5 * (a + self.criterion(p[1], z[0].detach()))


class SwAV(Peer):
    prefix = "network/"

    def __init__(self, s):
        super().__init__(s)
        self.network = Network(
            heads.SwaVProjectionHead(cases.FEATURES, s["hidden_dim"], s["out_dim"])
        )
        self.prototypes = heads.SwaVPrototypes(s["out_dim"], s["num_prototypes"])
        hold(self.prototypes.heads[0].bias, 0.0)
        self.criterion = losses.SwaVLoss()

    def names(self):
        # A row of ours is a row of theirs; `to_ours` turns matrices, so it is turned before.
        return [*super().names(), ("scorer/prototypes", self.prototypes.heads[0].weight)]

    def loss(self, views, batch):
        self.prototypes.normalize()
        scores = [self.prototypes(F.normalize(z, dim=1)) for z in self.network(views)]
        return self.criterion(scores[:2], scores[2:]).squeeze()

    def after(self, step):
        self.prototypes.normalize()


class DINO(Cosine):
    prefix = ""

    def __init__(self, s):
        super().__init__(s)
        self.network = Network(
            heads.DINOProjectionHead(
                cases.FEATURES, s["hidden_dim"], s["bottleneck_dim"], s["num_prototypes"]
            )
        )
        self.criterion = losses.DINOLoss(
            s["num_prototypes"], teacher_temp=s["teacher_temperature"], warmup_teacher_temp_epochs=0
        )
        self.target = Network(
            heads.DINOProjectionHead(
                cases.FEATURES, s["hidden_dim"], s["bottleneck_dim"], s["num_prototypes"]
            )
        ).requires_grad_(False)

    def memory(self):
        return {"centre": self.criterion.center.reshape(-1)}

    def loss(self, views, batch):
        with torch.no_grad():
            teacher = self.target(views[:2])
        return self.criterion(teacher, self.network(views))


class DeepClusterV2(Peer):
    def __init__(self, s):
        super().__init__(s)
        self.network = Network(
            heads.SwaVProjectionHead(cases.FEATURES, s["hidden_dim"], s["out_dim"])
        )

    def read(self, memory):
        count = len(self.s["num_prototypes"])
        self.rows = [torch.from_numpy(memory[f"prototypes/{h}"]) for h in range(count)]
        self.assignments = torch.from_numpy(memory["assignments"]).long()
        self.embeddings = torch.from_numpy(memory["embeddings"]).clone()

    def memory(self):
        return {"embeddings": self.embeddings}

    def loss(self, views, batch):
        z, terms = [F.normalize(one, dim=1) for one in self.network(views)], []
        for rows, assigned in zip(self.rows, self.assignments):
            labels = assigned[batch["id"]]
            terms += [F.cross_entropy(one @ rows.T / 0.1, labels) for one in z]
        self.embeddings[batch["id"]] = torch.stack(z, 1).detach()
        return sum(terms) / len(terms)


class SupCon(Peer):
    def __init__(self, s):
        super().__init__(s)
        from pytorch_metric_learning.losses import SupConLoss

        head = heads.MoCoProjectionHead(cases.FEATURES, cases.FEATURES, s["out_dim"])
        self.network, self.criterion = Network(head), SupConLoss(s["temperature"])

    def loss(self, views, batch):
        z = self.network(views)
        return self.criterion(torch.cat(z), batch["label"].repeat(len(z)))


class InstDisc(Peer):
    def __init__(self, s):
        super().__init__(s)
        self.network = Network(heads.ProjectionHead([(cases.FEATURES, s["out_dim"], None, None)]))

    def read(self, memory):
        self.rows = torch.from_numpy(memory["rows"]).clone()

    def memory(self):
        return {"rows": self.rows}

    def loss(self, views, batch):
        z, ids, m = F.normalize(self.network(views)[0], dim=1), batch["id"], self.s["momentum"]
        value = F.cross_entropy(z @ self.rows.clone().T / self.s["temperature"], ids)
        moved = m * self.rows[ids] + (1 - m) * z.detach()
        self.rows[ids] = F.normalize(moved, dim=1)
        return value


class Barlow(Peer):
    def __init__(self, s):
        super().__init__(s)
        head = heads.BarlowTwinsProjectionHead(cases.FEATURES, s["hidden_dim"], s["out_dim"])
        hold(head.layers[-1].bias, 0.0)
        self.network = Network(head, together=False)
        self.criterion = losses.BarlowTwinsLoss(s["off_diagonal_weight"])

    def loss(self, views, batch):
        return self.criterion(*self.network(views))


class VICReg(Peer):
    def __init__(self, s):
        super().__init__(s)
        head = heads.VICRegProjectionHead(cases.FEATURES, s["hidden_dim"], s["out_dim"])
        hold(head.layers[-1].bias, 0.0)
        self.network, self.criterion = Network(head, together=False), losses.VICRegLoss()

    def loss(self, views, batch):
        return self.criterion(*self.network(views))


class NNCLR(Peer):
    prefix = "network/"

    def __init__(self, s):
        super().__init__(s)
        out = s["out_dim"]
        self.network = Network(
            heads.NNCLRProjectionHead(cases.FEATURES, s["hidden_dim"], out), together=False
        )
        self.predictor = heads.NNCLRPredictionHead(out, s["predictor_dim"], out)
        self.bank = NNMemoryBankModule((s["queue_size"], out))
        self.criterion = losses.NTXentLoss(s["temperature"])

    def read(self, memory):
        self.bank.bank = torch.from_numpy(memory["rows"]).clone()

    def memory(self):
        return {"rows": F.normalize(self.bank.bank, dim=1)}

    def loss(self, views, batch):
        z = self.network(views)
        p = [self.predictor(one) for one in z]
        second = self.bank(z[1].detach(), update=False)
        first = self.bank(z[0].detach(), update=True)
        return 0.5 * (self.criterion(first, p[1]) + self.criterion(second, p[0]))


PEERS = {
    "simclr": SimCLR,
    "moco_v2": MoCoV2,
    "moco_v3": MoCoV3,
    "byol": BYOL,
    "simsiam": SimSiam,
    "swav": SwAV,
    "dino": DINO,
    "deepcluster_v2": DeepClusterV2,
    "supcon": SupCon,
    "instdisc": InstDisc,
    "barlow": Barlow,
    "vicreg": VICReg,
    "nnclr": NNCLR,
}
ROWS = ("scorer/prototypes", "last_layer/v")  # matrices that both sides write row by row


def load(names, arrays, prefix):
    """Puts our initial weights into the peer's parameters."""
    with torch.no_grad():
        for path, parameter in names:
            given = arrays.get(f"{prefix}/{path}")
            if given is None:
                if parameter.requires_grad:  # not one that is held
                    raise KeyError(f"{prefix}/{path}")
                continue
            value = torch.from_numpy(given)
            if value.ndim == 4:
                value = value.permute(3, 2, 0, 1)
            elif value.ndim == 2 and not path.endswith(ROWS):
                value = value.T
            parameter.copy_(value)


def dump(names, prefix, gradients=False):
    """The parameters, or their gradients, under our names; those that are held are left out."""
    found = {}
    for path, parameter in names:
        value = parameter.grad if gradients else parameter
        if value is None or (gradients and not parameter.requires_grad):
            continue
        rows = path.endswith(ROWS)
        found[f"{prefix}/{path}"] = value.detach().numpy().copy() if rows else to_ours(value)
    return found


def main(name, dtype, folder, computed=""):
    computed = computed or dtype
    torch.set_default_dtype(getattr(torch, computed))
    torch.set_num_threads(1)
    stem = f"{folder}/{name}.{dtype}"
    arrays = {
        key: value.astype(computed) if value.dtype.kind == "f" else value
        for key, value in np.load(f"{stem}.inputs.npz").items()
    }
    peer = PEERS[name](cases.CASES[name]["settings"])
    names, slow = peer.names(), peer.target_names()
    load(names, arrays, "params")
    load(slow, arrays, "target")
    start = "memory/"
    peer.read({k[len(start) :]: v for k, v in arrays.items() if k.startswith(start)})
    held = {path for path, p in names if not p.requires_grad}
    held_there = {path.removeprefix(peer.prefix) for path in held}
    optimizer = torch.optim.SGD(
        [p for _, p in names if p.requires_grad],
        lr=cases.SGD["learning_rate"],
        momentum=cases.SGD["momentum"],
        weight_decay=cases.SGD["weight_decay"],
    )
    found = {}
    for step in range(cases.STEPS):
        start = f"batch/{step}/"
        batch = {k[len(start) :]: v for k, v in arrays.items() if k.startswith(start)}
        views = [
            torch.from_numpy(batch[f"view{v}"].transpose(0, 3, 1, 2).copy())
            for v in range(len(cases.sides(name)))
        ]
        given = {key: torch.from_numpy(batch[key]).long() for key in ("id", "label")}
        optimizer.zero_grad()
        value = peer.loss(views, given)
        value.backward()
        found[f"{step}/loss"] = value.detach().numpy()
        found |= dump(names, f"{step}/gradient", gradients=True)
        optimizer.step()
        peer.after(step)
        found |= dump([one for one in names if one[0] not in held], f"{step}/params")
        found |= dump([one for one in slow if one[0] not in held_there], f"{step}/target")
        for key, value in peer.memory().items():
            found[f"{step}/memory/{key}"] = value.detach().numpy().copy()
    side = "peer" if computed == dtype else "control"
    np.savez(f"{stem}.{side}.npz", **found)


if __name__ == "__main__":
    main(**WORDS)
