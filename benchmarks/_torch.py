"""The PyTorch side of the comparisons: SimCLR's step with the same network, loss, batch and views,
as one writes it there.

The augmentation is written in batched tensor operations on the training device, which is faster
than torchvision's per image: random resized crop and flip as one `grid_sample` without
antialiasing, colour jitter in a fixed order (ours draws the order), hue as a rotation in YIQ,
grayscale, and at 224 pixels a Gaussian blur as two matrix products. Where the two sides differ,
this one has less to compute.
"""

import copy
import itertools
import math
import sys
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


def let_torchvision_import():
    """lightly imports torchvision, whose compiled operators may be of another build than torch.
    They are declared here and not used."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for module in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_declared"] = library  # it lives as long as the declarations


STAGES = {10: ((1, 1, 1, 1), False), 18: ((2, 2, 2, 2), False), 50: ((3, 4, 6, 3), True)}


def _conv(inside: int, out: int, side: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inside, out, side, stride, side // 2, bias=False)


class Block(nn.Module):
    """A residual block, stride on the 3x3 convolution."""

    def __init__(self, inside: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        out = width * (4 if bottleneck else 1)
        if bottleneck:
            layers = [(inside, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        else:
            layers = [(inside, width, 3, stride), (width, out, 3, 1)]
        self.convs = nn.ModuleList(_conv(*layer) for layer in layers)
        self.norms = nn.ModuleList(nn.BatchNorm2d(layer[1]) for layer in layers)
        changes = stride > 1 or inside != out
        self.shortcut = (
            nn.Sequential(_conv(inside, out, 1, stride), nn.BatchNorm2d(out))
            if changes
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, last = x, len(self.convs) - 1
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            y = norm(conv(y))
            y = F.relu(y, inplace=True) if number < last else y
        return F.relu(y + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """torchvision's ResNet, with the CIFAR or the ImageNet stem, to pooled features."""

    def __init__(self, depth: int, width: float, stem: str):
        super().__init__()
        counts, bottleneck = STAGES[depth]
        channels = int(64 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, 1, 1, bias=False)
            if stem == "cifar"
            else nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            *([] if stem == "cifar" else [nn.MaxPool2d(3, 2, 1)]),
        )
        blocks, inside = [], channels
        for stage, count in enumerate(counts):
            for number in range(count):
                here = int(64 * width) * 2**stage
                blocks.append(Block(inside, here, 2 if stage and not number else 1, bottleneck))
                inside = here * (4 if bottleneck else 1)
        self.blocks, self.features = nn.Sequential(*blocks), inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x)).float().mean((2, 3))


class ViT(nn.Module):
    """A pre-norm vision transformer with a class token and fixed positions; no gradient to the
    patch projection."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, size: int):
        super().__init__()
        self.patches, self.features, self.heads = nn.Conv2d(3, width, patch, patch), width, heads
        self.patches.requires_grad_(False)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "mlp1": nn.Linear(width, 4 * width),
                    "mlp2": nn.Linear(4 * width, width),
                }
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.positions[:, : x.shape[1]]
        for block in self.blocks:
            batch, tokens, width = x.shape
            q, k, v = (
                block["qkv"](block["norm1"](x))
                .view(batch, tokens, 3, self.heads, -1)
                .permute(2, 0, 3, 1, 4)
            )
            x = x + block["out"](
                F.scaled_dot_product_attention(q, k, v)
                .transpose(1, 2)
                .reshape(batch, tokens, width)
            )
            x = x + block["mlp2"](F.gelu(block["mlp1"](block["norm2"](x))))
        return self.norm(x)[:, 0].float()


class SimCLR(nn.Module):
    """Encoder and SimCLR's head: dense layers with batch norm, the last without its offset."""

    def __init__(self, encoder: nn.Module, out_dim: int, layers: int = 2):
        super().__init__()
        width = encoder.features
        self.encoder = encoder
        hidden = [
            module
            for _ in range(layers - 1)
            for module in (
                nn.Linear(width, width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(inplace=True),
            )
        ]
        self.head = nn.Sequential(
            *hidden, nn.Linear(width, out_dim, bias=False), nn.BatchNorm1d(out_dim)
        )
        self.head[-1].bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x)).float()


class Prototypes(nn.Module):
    """DINO's last layer: cosines with its rows."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(count, width) * 0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.rows, dim=1))


def head_of(method: str, width: int) -> nn.Sequential:
    """The head of a method that keeps a slow copy of its network."""
    if method == "moco_v2":
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, 128))
    if method == "byol":
        return byol_mlp(width)
    return nn.Sequential(
        *(nn.Linear(width, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU()),
        *(nn.Linear(2048, 256), Prototypes(256, 4096)),
    )


def byol_mlp(width: int) -> nn.Sequential:
    """BYOL's projector or predictor."""
    return nn.Sequential(
        nn.Linear(width, 4096),
        nn.BatchNorm1d(4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, 256, bias=False),
    )


def parameters(model: nn.Module) -> int:
    """Those that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    z = F.normalize(torch.cat([a, b]), dim=1)
    logits = (z @ z.T) / temperature
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    return F.cross_entropy(
        logits.masked_fill(own, -torch.inf), torch.arange(len(z), device=z.device).roll(len(a))
    )


def augment(
    images: torch.Tensor,
    size: int,
    *,
    strength: float,
    blur: bool,
    jitter: float = 0.8,
    gray: float = 0.2,
) -> torch.Tensor:
    """One view of uint8 images [B, 3, H, W], floats [B, 3, size, size] in [0, 1]."""
    batch, device = len(images), images.device
    u = torch.rand(16, batch, device=device)
    x = images.float() / 255
    area, ratio = 0.08 + 0.92 * u[0], torch.exp((2 * u[1] - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(batch, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1] = torch.where(u[2] < 0.5, -width, width), height
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * (2 * u[3] - 1), (1 - height) * (2 * u[4] - 1)
    x = F.grid_sample(
        x,
        F.affine_grid(theta, [batch, 3, size, size], align_corners=False),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )

    def each(values: torch.Tensor) -> torch.Tensor:
        return values[:, None, None, None]

    weights = torch.tensor([0.299, 0.587, 0.114], device=device)[None, :, None, None]
    y = (x * each(1 + 0.8 * strength * (2 * u[5] - 1))).clamp(0, 1)
    y = y.mean((2, 3), keepdim=True).lerp(y, each(1 + 0.8 * strength * (2 * u[6] - 1))).clamp(0, 1)
    y = (
        (y * weights)
        .sum(1, keepdim=True)
        .lerp(y, each(1 + 0.8 * strength * (2 * u[7] - 1)))
        .clamp(0, 1)
    )
    y = torch.einsum("bij,bjhw->bihw", _hue(0.2 * strength * (2 * u[8] - 1)), y).clamp(0, 1)
    x = torch.where(each(u[9] < jitter), y, x)
    x = torch.where(each(u[10] < gray), (x * weights).sum(1, keepdim=True), x)
    if blur:
        sigma = 0.1 + 1.9 * u[11]
        away = torch.arange(size, device=device)
        away = (away[:, None] - away[None]).float()
        kernel = torch.exp(-(away**2) / (2 * sigma[:, None, None] ** 2)) * (
            away.abs() <= size // 20
        )
        kernel = (kernel / kernel.sum(2, keepdim=True))[:, None]
        x = torch.where(each(u[12] < 0.5), kernel @ x @ kernel.transpose(2, 3), x)
    return x


def _hue(turns: torch.Tensor) -> torch.Tensor:
    """[B, 3, 3]: RGB to YIQ, turned, and back."""
    yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]],
        device=turns.device,
    )
    c, s = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    turn = torch.stack([one, zero, zero, zero, c, -s, zero, s, c], 1).view(-1, 3, 3)
    return torch.linalg.inv(yiq) @ turn @ yiq


def encoder_of(section: dict, size: int) -> nn.Module:
    """The encoder of a config's section."""
    if section["name"] == "vit":
        sizes = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
        width, depth, heads = sizes[section["size"]]
        return ViT(
            section.get("width") or width,
            section.get("depth") or depth,
            section.get("heads") or heads,
            section["patch"],
            size,
        )
    return ResNet(section["depth"], section["width"], section["stem"])


def step_of(
    encoder: dict,
    images: torch.Tensor,
    *,
    batch: int,
    size: int,
    out_dim: int,
    temperature: float,
    strength: float,
    blur: bool,
    dtype: str = "float32",
    channels_last: bool = False,
    compiled: bool = False,
    layers: int = 2,
    adamw: bool = False,
) -> tuple[Callable[[], None], int]:
    """(one training step with its augmentation, number of parameters). `images` [N, 3, H, W] uint8,
    on the device that is to compute; steps take batches from them in turn. A step is not waited
    for."""
    device = images.device
    model = SimCLR(encoder_of(encoder, size), out_dim, layers).to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    number = parameters(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = (
        torch.optim.AdamW(trained, lr=1e-3)
        if adamw
        else torch.optim.SGD(trained, lr=0.03, momentum=0.9)
    )
    network = torch.compile(model) if compiled else model
    views = torch.compile(augment) if compiled else augment
    at = 0

    def step() -> None:
        nonlocal at
        rows = images[torch.arange(at, at + batch, device=device) % len(images)]
        at = (at + batch) % len(images)
        both = torch.cat([views(rows, size, strength=strength, blur=blur) for _ in range(2)])
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            z = network(both.contiguous(memory_format=layout))
        nt_xent(z[:batch], z[batch:], temperature).backward()
        optimizer.step()

    return step, number


def slow_copy_step_of(
    method: str,
    encoder: dict,
    images: torch.Tensor,
    *,
    batch: int,
    sizes: tuple[int, ...],
    strength: float,
    queue_size: int,
    channels_last: bool = False,
) -> tuple[Callable[[], None], int]:
    """`step_of` for MoCo v2, BYOL or DINO, whose targets come from a moving average of the network:
    one view of each of the sizes; DINO's teacher sees the first two."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    backbone = encoder_of(encoder, max(sizes))
    online = nn.Sequential(backbone, head_of(method, backbone.features)).to(memory_format=layout)
    slow = copy.deepcopy(online).requires_grad_(False)
    predictor = byol_mlp(256) if method == "byol" else nn.Identity()
    modules = nn.ModuleList([online, predictor])
    trained = [p for p in modules.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.03, momentum=0.9)
    queue, centre = F.normalize(torch.randn(queue_size, 128), dim=1), torch.zeros(1, 4096)
    at, entering = 0, 0

    def moco(views: list[torch.Tensor]) -> torch.Tensor:
        nonlocal entering
        q = F.normalize(online(views[0]), dim=1)
        with torch.no_grad():
            order = torch.randperm(batch)
            k = F.normalize(slow(views[1][order]), dim=1)[order.argsort()]
        # A copy, as in the authors' code: the gradient needs the queue as it was.
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.clone().T], 1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(batch, dtype=torch.long))
        queue[entering : entering + batch] = k
        entering = (entering + batch) % queue_size
        return loss

    def byol(views: list[torch.Tensor]) -> torch.Tensor:
        p = [predictor(online(view)) for view in views]
        with torch.no_grad():
            z = [slow(view) for view in views]
        return sum(2 - 2 * F.cosine_similarity(a, b).mean() for a, b in zip(p, reversed(z)))

    def dino(views: list[torch.Tensor]) -> torch.Tensor:
        runs = [torch.cat(list(run)) for _, run in itertools.groupby(views, lambda v: v.shape[-1])]
        log_p = F.log_softmax(torch.cat([online(run) for run in runs]) / 0.1, 1).chunk(len(views))
        with torch.no_grad():
            teacher = slow(runs[0])
            targets = F.softmax((teacher - centre) / 0.04, 1).chunk(2)
            centre.mul_(0.9).add_(teacher.mean(0, keepdim=True), alpha=0.1)
        terms = [
            -(target * log_p[v]).sum(1).mean()
            for a, target in enumerate(targets)
            for v in range(len(views))
            if v != a
        ]
        return sum(terms) / len(terms)

    loss_of = {"moco_v2": moco, "byol": byol, "dino": dino}[method]

    def step() -> None:
        nonlocal at
        rows = images[torch.arange(at, at + batch) % len(images)]
        at = (at + batch) % len(images)
        views = [
            augment(rows, size, strength=strength, blur=False).contiguous(memory_format=layout)
            for size in sizes
        ]
        optimizer.zero_grad(set_to_none=True)
        loss_of(views).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(slow.parameters()), list(online.parameters()), 0.01)

    return step, parameters(modules)
