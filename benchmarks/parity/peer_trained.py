"""The peer's side of the trained comparison: lightly's transforms, losses and heads.

python benchmarks/parity/peer_trained.py CASE SEED FOLDER STEPS: as `ours_trained.py`.
"""

import time
from pathlib import Path

import cases

if __name__ == "__main__":  # before PyTorch, which --help does not need
    WORDS = cases.words(__doc__, **cases.OF_TRAINED)

import numpy as np
import peer as peers  # first: it lets torchvision import
import torch
import view_statistics
from lightly.transforms.simclr_transform import SimCLRViewTransform
from PIL import Image
from torchvision import transforms


def transform(**changes):
    """lightly's transform by the common recipe; one view."""
    view = {**cases.VIEW, **changes}
    return SimCLRViewTransform(
        input_size=view["size"],
        cj_prob=view["jitter"],
        cj_strength=view["strength"],
        min_scale=view["scale"][0],
        random_gray_scale=view["gray"],
        gaussian_blur=0.0,
        hf_prob=view["flip"],
        normalize=None,
    )


def drawn(pixels, **changes):
    """One view of each image, uint8 [N, 32, 32, 3] to [N, S, S, 3]."""
    torch.manual_seed(11)
    made = transform(**changes)
    if changes.get("scale") == (1.0, 1.0):  # colours alone: the whole image, without its crop
        made.transform.transforms[0] = transforms.Resize((cases.SIDE, cases.SIDE))
    return np.stack([made(Image.fromarray(x)).permute(1, 2, 0).numpy() for x in pixels])


def rate(step, steps):
    """A linear warm-up, then a half cosine to 0."""
    warm = round(cases.TRAIN["warmup_share"] * steps)
    if step < warm:
        return step / warm
    return 0.5 * (1 + np.cos(np.pi * (step - warm) / max(steps - warm, 1)))


def features(peer, pixels):
    network = peer.target if isinstance(peer, peers.DINO) else peer.network
    network.eval()
    with torch.no_grad():
        rows = [
            network.pooled(torch.from_numpy(pixels[at : at + 500]).permute(0, 3, 1, 2)).numpy()
            for at in range(0, len(pixels), 500)
        ]
    return np.concatenate(rows)


def main(name, seed, folder, steps):
    torch.set_num_threads(1)
    folder, seed, steps = Path(folder), int(seed), int(steps)
    if name == "views":
        view_statistics.export(folder / "peer" / "views.npz", drawn)
        return
    workdir = folder / "peer" / name / f"{steps}steps.seed{seed}"
    workdir.mkdir(parents=True, exist_ok=True)
    data = dict(np.load(folder / "data" / "train.npz"))
    images, labels = [Image.fromarray(x) for x in data["image"]], torch.from_numpy(data["label"])
    given = cases.TRAIN
    torch.manual_seed(seed)
    peer = peers.PEERS[name](cases.TRAINED[name])
    peer.total = steps
    if name == "instdisc":
        rows = torch.randn(len(images), cases.TRAINED[name]["out_dim"])
        peer.rows = torch.nn.functional.normalize(rows, dim=1)
    moving = [p for _, p in peer.names() if p.requires_grad]
    optimizer = torch.optim.SGD(
        moving,
        lr=given["learning_rate"],
        momentum=given["momentum"],
        weight_decay=given["weight_decay"],
    )
    made, first, speeds = transform(), 0, []
    saved = workdir / "saved.pt"
    if saved.exists():
        kept = torch.load(saved, weights_only=False)
        peer, first, speeds = kept["peer"], kept["step"], kept["speeds"]
        moving = [p for _, p in peer.names() if p.requires_grad]
        optimizer = torch.optim.SGD(moving, lr=0.0)
        optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["rng"])
    per_epoch = len(images) // given["batch"]
    began = time.perf_counter()
    for step in range(first, steps):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(images))
        ids = order[place * given["batch"] : (place + 1) * given["batch"]]
        views = [torch.stack([made(images[i]) for i in ids]) for _ in range(cases.views_of(name))]
        for group in optimizer.param_groups:
            group["lr"] = given["learning_rate"] * rate(step, steps)
        optimizer.zero_grad()
        at = torch.from_numpy(ids)
        peer.loss(views, {"id": at, "label": labels[at].long()}).backward()
        optimizer.step()
        peer.after(step)
        if (step + 1) % 10 == 0:
            now = time.perf_counter()
            speeds.append(10 * given["batch"] / (now - began))
            began = now
        if (step + 1) % given["save_steps"] == 0:
            kept = {"peer": peer, "step": step + 1, "speeds": speeds, "rng": torch.get_rng_state()}
            torch.save(kept | {"optimizer": optimizer.state_dict()}, saved)
    clean = np.load(folder / "clean.npz")
    np.savez(
        workdir / "features.npz",
        train=features(peer, clean["train"]),
        test=features(peer, clean["test"]),
        images_per_second=np.median(speeds),
        steps=steps,
    )


if __name__ == "__main__":
    main(**WORDS)
