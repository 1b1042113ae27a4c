"""Losses: pure functions on arrays, which need jax and numpy alone.

The losses that most people look for are names of this module; all others, with row-wise forms,
logits and draws, are at `losses.<family>.<name>`, each in one place.

| you have | use |
|---|---|
| two views of each example | `nt_xent` (SimCLR), `moco_v3` with a momentum encoder |
| more than two views | `nt_xent_views` |
| small batches, two views | `dcl`, or a queue: `info_nce(q, k, queue)` (MoCo) |
| a queue, to draw positives from too | `nnclr` |
| queries with keys of any kind, in the batch or given | `info_nce` |
| labels for all or some examples | `supcon`; long-tailed classes with a queue: `kcl` |
| hard negatives, or classes that repeat in the batch | `hcl` |
| an image with its text | `clip`; `siglip` where each pair is judged by itself |
| sentences | `simcse` |
| no negatives, a momentum target | `byol`, `dino`; without a target: `simsiam` |
| no negatives, one network, statistics of the batch | `vicreg`, `barlow_twins` |
| prototypes | `swav` with `swav_codes`; `deepcluster_v2`, `pcl` from clusterings |
| a memory of every example | `losses.nce.nce` (InstDisc), `losses.nce.bank_softmax` |
| fresh features as instance classes | `inva_spread` |
| sequences or grids of patches | `cpc` |
| a teacher's logits | `soft_labels` |
| labels and logits, some labels missing | `cross_entropy` |
| a loss of your own over pairs | `contrast`, the primitive under most of these |
| features to be measured, or spread directly | `alignment`, `uniformity` |

Losses return the mean over the global batch, in nats. Labels below 0 are no label. Where `contrast`
and `inva_spread` are functions here, the modules of these names are imported from:
`from cl_jax.losses.contrast import same_id`.
"""

import importlib
from typing import Any

from cl_jax.core.numerics import unit
from cl_jax.losses import (
    adversarial,
    assignments,
    calm,
    clusters,
    decorrelation,
    decoupled,
    distillation,
    generation,
    geometry,
    graph,
    hardness,
    image_text,
    infonce,
    masked,
    mixing,
    mutual_information,
    nce,
    neighbours,
    no_negatives,
    positives,
    predictive,
    sentence,
    spaces,
    spread,
    targeted,
    video_text,
)
from cl_jax.losses.assignments import cross_entropy, deepcluster_v2, swav, swav_codes
from cl_jax.losses.clusters import pcl
from cl_jax.losses.contrast import contrast
from cl_jax.losses.decorrelation import barlow_twins, vicreg
from cl_jax.losses.decoupled import dcl
from cl_jax.losses.distillation import soft_labels
from cl_jax.losses.geometry import alignment, uniformity
from cl_jax.losses.hardness import hcl
from cl_jax.losses.image_text import clip, siglip
from cl_jax.losses.infonce import info_nce, moco_v3, nt_xent, nt_xent_views
from cl_jax.losses.inva_spread import inva_spread
from cl_jax.losses.neighbours import nnclr
from cl_jax.losses.no_negatives import byol, dino, simsiam
from cl_jax.losses.positives import kcl, supcon
from cl_jax.losses.predictive import cpc
from cl_jax.losses.sentence import simcse

FAMILIES = (
    "adversarial",
    "assignments",
    "calm",
    "clusters",
    "contrast",
    "decorrelation",
    "decoupled",
    "distillation",
    "generation",
    "geometry",
    "graph",
    "hardness",
    "image_text",
    "infonce",
    "inva_spread",
    "masked",
    "mixing",
    "mutual_information",
    "nce",
    "neighbours",
    "no_negatives",
    "positives",
    "predictive",
    "sentence",
    "spaces",
    "spread",
    "targeted",
    "video_text",
)

__all__ = [
    "FAMILIES",
    "adversarial",
    "alignment",
    "assignments",
    "barlow_twins",
    "byol",
    "calm",
    "clip",
    "clusters",
    "contrast",
    "cpc",
    "cross_entropy",
    "dcl",
    "decorrelation",
    "decoupled",
    "deepcluster_v2",
    "dino",
    "distillation",
    "generation",
    "geometry",
    "graph",
    "hardness",
    "hcl",
    "image_text",
    "info_nce",
    "infonce",
    "inva_spread",
    "kcl",
    "masked",
    "mixing",
    "moco_v3",
    "mutual_information",
    "nce",
    "neighbours",
    "nnclr",
    "no_negatives",
    "nt_xent",
    "nt_xent_views",
    "pcl",
    "positives",
    "predictive",
    "sentence",
    "siglip",
    "simcse",
    "simsiam",
    "soft_labels",
    "spaces",
    "spread",
    "supcon",
    "swav",
    "swav_codes",
    "targeted",
    "uniformity",
    "unit",
    "vicreg",
    "video_text",
]


def __getattr__(name: str) -> Any:
    """Raises an AttributeError that says in which module a name is."""
    for family in FAMILIES:
        module = importlib.import_module(f"{__name__}.{family}")
        if name[:1] != "_" and getattr(vars(module).get(name), "__module__", None) == (
            module.__name__
        ):
            shadowed = family in ("contrast", "inva_spread")
            where = f"from {module.__name__} import {name}" if shadowed else f"{family}.{name}"
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r} at its top. Use "
                f"{where if shadowed else f'losses.{where}'}."
            )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
