"""What both programs of a comparison run: sizes and settings, without jax and without PyTorch."""

import argparse

BATCH, SIDE, SMALL, STEPS, EXAMPLES, CLASSES = 32, 16, 12, 10, 64, 10
DEPTH, WIDTH = 10, 0.25  # the network: a ResNet of `benchmarks/_torch.py` and `cl_jax.encoders`
FEATURES = 128
SGD = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-4}

# For each case: the module of `cl_jax.methods`, its settings, sides of the views, and whose code
# the peer's losses and heads are.
CASES = {
    "simclr": {
        "method": "simclr_v1",
        "settings": {"temperature": 0.5, "sum_directions": False, "out_dim": 32},
        "peer": "lightly: NTXentLoss, SimCLRProjectionHead",
    },
    "moco_v2": {
        "method": "moco_v2",
        "settings": {
            "temperature": 0.2,
            "momentum": 0.99,
            "queue_size": 64,
            "out_dim": 32,
            "shuffle": False,
        },
        "peer": "lightly: NTXentLoss with its memory bank, MoCoProjectionHead, update_momentum",
    },
    "moco_v3": {
        "method": "moco_v3",
        "settings": {"temperature": 0.2, "momentum": 0.99, "hidden_dim": 64, "out_dim": 32},
        "peer": "lightly: MoCoProjectionHead, ProjectionHead; the loss by the paper's algorithm 1",
    },
    "byol": {
        "method": "byol",
        "settings": {"momentum": 0.99, "hidden_dim": 64, "out_dim": 32},
        "peer": "lightly: NegativeCosineSimilarity, BYOL's heads, update_momentum",
    },
    "simsiam": {
        "method": "simsiam",
        "settings": {"out_dim": 64, "hidden_dim": 32},
        "peer": "lightly: NegativeCosineSimilarity, SimSiam's heads",
    },
    "swav": {
        "method": "swav",
        "settings": {"num_prototypes": 20, "hidden_dim": 64, "out_dim": 32},
        "sides": (SIDE, SIDE, SMALL, SMALL),
        "peer": "lightly: SwaVLoss, SwaVProjectionHead, SwaVPrototypes",
    },
    "dino": {
        "method": "dino",
        "settings": {
            "num_prototypes": 40,
            "hidden_dim": 64,
            "bottleneck_dim": 16,
            "momentum": 0.99,
            "teacher_temperature": 0.04,
        },
        "sides": (SIDE, SIDE, SMALL, SMALL),
        "peer": "lightly: DINOLoss with its centre, DINOProjectionHead, update_momentum",
    },
    "deepcluster_v2": {
        "method": "deepcluster_v2",
        "settings": {"num_prototypes": (8, 12), "hidden_dim": 64, "out_dim": 32},
        "peer": "lightly: SwaVProjectionHead; cross entropy by the paper's appendix",
    },
    "supcon": {
        "method": "supcon",
        "settings": {"temperature": 0.1, "base_temperature": None, "out_dim": 32},
        "peer": "pytorch-metric-learning: SupConLoss; lightly: MoCoProjectionHead",
    },
    "instdisc": {
        "method": "instdisc",
        "settings": {"loss": "full_softmax", "temperature": 0.07, "momentum": 0.5, "out_dim": 32},
        "sides": (SIDE,),
        "peer": "the authors' form for CIFAR-10, written from the paper's equations 2 and 8",
    },
    "barlow": {
        "method": "barlow",
        "settings": {"off_diagonal_weight": 0.005, "hidden_dim": 64, "out_dim": 64},
        "peer": "lightly: BarlowTwinsLoss, BarlowTwinsProjectionHead",
    },
    "vicreg": {
        "method": "vicreg",
        "settings": {"hidden_dim": 64, "out_dim": 64},
        "peer": "lightly: VICRegLoss, VICRegProjectionHead",
    },
    "nnclr": {
        "method": "nnclr",
        "settings": {
            "temperature": 0.1,
            "form": "nt_xent",
            "queue_size": 64,
            "hidden_dim": 64,
            "out_dim": 32,
            "predictor_dim": 64,
        },
        "peer": "lightly: NTXentLoss, NNMemoryBankModule, NNCLR's heads",
    },
}


def sides(name):
    """Sides of a case's views in pixels."""
    return CASES[name].get("sides", (SIDE, SIDE))


# The trained comparison --------------------------------------

# One network, budget, optimiser, schedule and recipe of views for both programs.
TRAIN = {
    "examples": 25_000,
    "batch": 64,
    "steps": 1000,
    "warmup_share": 0.05,  # of the steps
    "learning_rate": 0.06,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "save_steps": 250,
}
VIEW = {"size": SIDE, "scale": (0.2, 1.0), "strength": 0.5, "gray": 0.2, "jitter": 0.8, "flip": 0.5}
TRAINED = {
    "simclr": {"temperature": 0.5, "sum_directions": False, "out_dim": 128},
    "moco_v2": {
        "temperature": 0.2,
        "momentum": 0.99,
        "queue_size": 4096,
        "out_dim": 128,
        "shuffle": False,
    },
    "moco_v3": {"temperature": 0.2, "momentum": 0.99, "hidden_dim": 512, "out_dim": 128},
    "byol": {"momentum": 0.99, "hidden_dim": 512, "out_dim": 128},
    "simsiam": {"out_dim": 512, "hidden_dim": 128},
    "swav": {"num_prototypes": 200, "hidden_dim": 256, "out_dim": 64},
    "dino": {
        "num_prototypes": 256,
        "hidden_dim": 256,
        "bottleneck_dim": 64,
        "momentum": 0.99,
        "teacher_temperature": 0.04,
    },
    "supcon": {"temperature": 0.1, "base_temperature": None, "out_dim": 128},
    "instdisc": {"loss": "full_softmax", "temperature": 0.07, "momentum": 0.5, "out_dim": 128},
    "barlow": {"off_diagonal_weight": 0.005, "hidden_dim": 512, "out_dim": 512},
    "vicreg": {"hidden_dim": 512, "out_dim": 512},
    "nnclr": {
        "temperature": 0.1,
        "form": "nt_xent",
        "queue_size": 4096,
        "hidden_dim": 512,
        "out_dim": 128,
        "predictor_dim": 512,
    },
}


def views_of(name):
    """How many views a case is trained on; all by the recipe VIEW."""
    return 1 if name == "instdisc" else 2


def words(description, **meanings):
    """The words of a command line, which are all positional: {name: what it means}; a word whose
    meaning begins with "optional" may be left out."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, meaning in meanings.items():
        left_out = {"nargs": "?", "default": ""} if meaning.startswith("optional") else {}
        parser.add_argument(name, help=meaning, **left_out)
    return vars(parser.parse_args())


OF_STEPS = {
    "name": f"one of {', '.join(CASES)}",
    "dtype": "float32 or float64",
    "folder": "where the inputs and results are",
}
OF_TRAINED = {
    "name": f"one of {', '.join(TRAINED)}, or views",
    "seed": "of the run",
    "folder": "--workdir of trained.py",
    "steps": "of the run",
}
