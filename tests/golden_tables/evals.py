"""The weighted kNN vote of three programs through the one function."""

from cl_jax.evals.knn import knn
from tests.goldens import Case, Golden


def _knn(case: Case, num_classes: int, labels=None):
    return knn(
        case["bank"],
        case["bank_labels"],
        case["features"],
        labels,
        k=case["k"],
        temperature=case["temperature"],
        num_classes=num_classes,
        normalise=False,
        block_size=16,
        query_size=8,
    )


def _instdisc(case):
    # The authors count the classes by the largest label of the bank.
    out = _knn(case, int(case.numpy("bank_labels").max()) + 1, case["labels"])
    return {"votes": out.votes, "prediction": out.prediction, "top1": out.top1}


def _moco(case):
    out = _knn(case, case["num_classes"])
    return {"votes": out.votes, "prediction": out.prediction}


def _dino(case):
    out = _knn(case, case["num_classes"], case["labels"])
    return {"votes": out.votes, "prediction": out.prediction, "top1_percent": 100 * out.top1}


TABLE = {
    "instdisc-knn": Golden(_instdisc),
    "moco-knn": Golden(_moco, f32=5e-5),
    "dino-knn": Golden(_dino, f32=2e-5),
}
