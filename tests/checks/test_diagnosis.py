"""Verdicts: on logs as runs wrote them, on features made to fail, and (slow) on runs made to
fail."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ml_collections import ConfigDict

from cl_jax import losses
from cl_jax.checks import diagnosis
from cl_jax.checks.diagnosis import (
    BELOW_CHANCE,
    CHANCE,
    COLLAPSED,
    COLLAPSING,
    EARLY,
    HEALTHY,
    LEAKING,
    WORSE,
    diagnose,
)
from cl_jax.core import parallel
from cl_jax.core.method import Aux, Run, Variables, from_loss
from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import geometry
from cl_jax.losses import nce, unit
from cl_jax.memory import queue as queues
from cl_jax.training import loop, metrics, optim
from cl_jax.training.experiment import Built, initial_state
from cl_jax.training.steps import stepper
from configs import simclr_v1

EPOCHS = 12.0
# Twelve epochs on `scenes`, one seed each, as the runs logged them: rows of the loss before the
# evaluation, effective rank at it and of the untrained network (measured afterwards), chance, kNN,
# kNN untrained.
LOGGED = {
    "simclr_v1, epoch 4": (4, (12.5, 12.4, 11.75), 64.2, 78.9, 12.473, 0.638, 0.396, HEALTHY),
    "simclr_v1": (12, (7.65, 7.78), 63.2, 78.9, 12.473, 0.792, 0.396, HEALTHY),
    "deepcluster": (12, (2.63, 2.62), 62.5, 80.4, 4.605, 0.805, 0.500, HEALTHY),
    "supcon, epoch 8": (8, (8.84, 8.79), 59.8, 78.9, 8.909, 0.370, 0.396, CHANCE),
    "supcon": (12, (8.36, 8.32), 64.2, 78.9, 8.909, 0.597, 0.396, HEALTHY),
    "byol": (12, (2.72, 2.69), 12.1, 79.9, None, 0.157, 0.325, COLLAPSING),
    "swav": (12, (4.605, 4.605), 8.3, 79.9, 4.605, 0.175, 0.325, COLLAPSING),
    "swav, second form": (8, (4.601, 4.600), 25.2, 79.9, 4.605, 0.189, 0.417, CHANCE),
    "moco_v2": (12, (8.83, 8.80), 9.2, 80.9, 8.318, 0.131, 0.325, COLLAPSING),
    "cmc": (12, (10.15, 10.11), 36.2, 170.3, 12.481, 0.104, 0.229, COLLAPSING),
    "deepcluster_v2, epoch 4": (4, (4.33, 4.32), 43.6, 79.9, 4.605, 0.162, 0.325, EARLY),
    "deepcluster_v2": (12, (4.15, 4.15), 47.6, 79.9, 4.605, 0.161, 0.325, WORSE),
}


def log(*, epoch=EPOCHS, loss=(1.0,), chance=None, start=None, **evaluated):
    """A log with one evaluation; names of what was evaluated have _ for /."""
    training = [
        {"step": 1000 + i, "loss": x, "epoch": epoch}
        | ({} if chance is None else {"chance": chance})
        for i, x in enumerate(loss)
    ]
    now = {
        "geometry/feature_std": 0.05,
        "geometry/relative_std": 0.5,
        "geometry/effective_rank": 60.0,
    } | {name.replace("_", "/", 1): value for name, value in evaluated.items()}
    return [{"step": 0} | (start or {}), *training, {"step": 2000} | now]


@pytest.mark.parametrize("name", LOGGED)
def test_logged_runs(name):
    epoch, loss, rank, untrained, chance, knn, before, wanted = LOGGED[name]
    for reference in (True, False):
        start = {"untrained/knn/top1": before} | (
            {"untrained/geometry/effective_rank": untrained} if reference else {}
        )
        rows = log(
            epoch=epoch,
            loss=loss,
            chance=chance,
            start=start,
            geometry_effective_rank=rank,
            knn_top1=knn,
        )
        found = diagnose(rows, 12)
        if reference:
            assert found.name == wanted, found
        else:  # a log without the reference still tells the good from the bad, by kNN and loss
            assert (found.name == HEALTHY) == (wanted == HEALTHY), found
        assert found.advice or found.name in (HEALTHY, EARLY)


def test_without_labels_the_loss_and_the_rank_decide():
    start = {"untrained/geometry/effective_rank": 80.0}
    assert diagnose(log(loss=(7.0,), chance=8.3, start=start), 12).name == HEALTHY
    assert diagnose(log(loss=(8.2,), chance=8.3, start=start), 12).name == CHANCE
    assert diagnose(log(loss=(9.1,), chance=8.3, start=start), 12).name == BELOW_CHANCE
    assert diagnose(log(geometry_effective_rank=19.0, start=start), 12).name == COLLAPSING
    assert diagnose(log(geometry_effective_rank=21.0, start=start), 12).name == HEALTHY


def test_a_knn_that_training_did_not_raise():
    start = {"untrained/knn/top1": 0.4}
    for knn, epoch, wanted in (
        (0.43, 12, HEALTHY),
        (0.41, 12, WORSE),
        (0.41, 5, EARLY),
        (0.43, 5, HEALTHY),
    ):
        assert diagnose(log(epoch=epoch, start=start, knn_top1=knn), 12).name == wanted
    assert (
        diagnose(log(loss=(8.3,), chance=8.3, start=start, knn_top1=0.43), 12).name == HEALTHY
    )  # more than the loss says
    high = {"untrained/knn/top1": 0.93}  # where a twentieth more would be 97.7 %
    assert diagnose(log(start=high, knn_top1=0.975), 12).name == HEALTHY
    assert diagnose(log(start=high, knn_top1=0.94), 12).name == WORSE


@pytest.mark.parametrize("loss, wanted", [(8.31, CHANCE), (9.0, BELOW_CHANCE)])
def test_a_loss_above_chance_is_never_healthy(loss, wanted):
    """However good the kNN."""
    start = {"knn/random_network": 0.4}
    rows = log(loss=(loss,), chance=8.3, start=start, knn_top1=0.8)
    assert diagnose(rows, 12).name == wanted


def test_no_verdict_before_its_time():
    assert diagnose([], 12).name == EARLY
    assert (
        diagnose([{"step": 0, "untrained/knn/top1": 0.3}, {"step": 5, "loss": 1.0}], 12).name
        == EARLY
    )
    rows = log(epoch=1.0, geometry_relative_std=0.0)
    rows[-1]["step"] = 20
    assert diagnose(rows, 12).name == EARLY


def test_only_losses_since_the_evaluation_before_count():
    first, second = log(loss=(8.3, 8.3), chance=8.3), log(loss=(5.0,), chance=8.3)
    assert diagnose(first, 12).name == CHANCE
    assert diagnose(first + second[1:], 12).name == HEALTHY
    assert diagnose((first + second[1:])[: len(first)], 12).name == CHANCE


def test_the_line_names_figures_cause_and_mend():
    text = str(diagnose(log(loss=(8.3,), chance=8.318), 12))
    assert text.startswith(
        "verdict: no better than chance (loss 8.300, 8.318 of a network at chance level). "
    )
    assert "temperature far too high (0.05 to 0.5 is usual)" in text
    filling = log(loss=(5.0,), chance=8.3)
    filling[1]["queue_filled"] = 0.25
    assert str(diagnose(filling, 12)).endswith("queue 25% filled).")


# Features made to fail
# --------------------------------------

ROWS, BATCH, DIM = 256, 32, 64


def features(kind, seed=0):
    """[2, N, D] of two views: what both share of an image, noise of each, and what the kind
    adds."""
    rng = np.random.default_rng(seed)
    image, noise = rng.normal(size=(1, ROWS, DIM)), rng.normal(size=(2, ROWS, DIM))
    mark = rng.normal(size=(1, ROWS // BATCH, DIM)).repeat(BATCH, axis=1)
    return np.float32(
        {
            "good": image + 0.3 * noise,
            "constant": 100 + 0.1 * image + 0.01 * noise,
            "few directions": (image + 0.3 * noise) * (np.arange(DIM) < 6) + 0.01 * noise,
            "marked": image + 0.3 * noise + 1.5 * mark,
        }[kind]
    )


@pytest.mark.parametrize(
    "clean, trained, wanted",
    [
        ("good", "good", HEALTHY),
        ("constant", "constant", COLLAPSED),
        ("few directions", "few directions", COLLAPSING),
        ("good", "marked", LEAKING),
    ],
)
def test_features_made_to_fail(clean, trained, wanted):
    running, batches = features(clean), features(trained)
    untrained = features("good", seed=1)
    start = {
        "step": 0,
        "untrained/geometry/effective_rank": geometry.measure(untrained[0])[
            "geometry/effective_rank"
        ],
        "untrained/pairs/same_batch": geometry.of_pairs(untrained, untrained, BATCH)[
            "pairs/same_batch"
        ],
    }
    now = geometry.measure(running[0], None, tuple(running)) | geometry.of_pairs(
        running, batches, BATCH
    )
    found = diagnose([start, {"step": 5000, "loss": 1.0, "epoch": 9.0}, {"step": 5000} | now], 12)
    assert found.name == wanted, found
    if trained == "marked":
        assert now["pairs/same_batch"] > 0.5 and now["pairs/top1"] > 0.9
        assert "Batch norm gives the positive away" in str(found)
    else:
        assert abs(now["pairs/same_batch"]) < 0.1


def test_a_contrast_that_running_statistics_do_not_support():
    rows = log(loss=(5.0,), chance=8.3, pairs_top1=0.01)
    rows[1]["contrast_top1"] = 0.44
    found = diagnose(rows, 12)
    assert (
        found.name == LEAKING
        and "training tells 44% of its positives, running statistics 1%" in found.evidence
    )
    rows[1]["contrast_top1"] = 0.15
    assert diagnose(rows, 12).name == HEALTHY
    rows = log(
        loss=(5.0,), chance=8.3, pairs_top1=0.02, start={"untrained/knn/top1": 0.325}, knn_top1=0.77
    )
    rows[1]["contrast_top1"] = (
        0.29  # MoCo v1 on `scenes`, where half of the pairs are two views of one picture
    )
    assert diagnose(rows, 12).name == HEALTHY


def test_pairs_by_hand():
    """Four rows in two batches: the second view of row 0 is nearest to itself, of row 1 to row
    0."""
    a = np.float32([[1, 0, 0], [0.9, 0.1, 0], [0, 0, 1], [0, 1, 0]])
    b = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.9, 0.1]])
    found = geometry.of_pairs(np.stack([a, b]), np.stack([a, b]), 2)
    assert found["pairs/rows"] == 4
    assert found["pairs/top1"] == 0.5  # rows 0 and 2; row 1 goes to 0, row 3 to 1
    # Leaving each row's own out: 0 -> 1 (of equal ones the first), 1 -> 0, 2 -> 3, 3 -> 1. Chance
    # is 1 / 3.
    assert found["pairs/same_batch"] == pytest.approx((3 / 4 - 1 / 3) / (2 / 3))


def test_the_table_of_a_log(tmp_path):
    (tmp_path / "config.json").write_text('{"total_epochs": 12.0}')
    rows = log(loss=(8.3,), chance=8.3, start={"untrained/knn/top1": 0.3}, knn_top1=0.2)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert diagnosis.table([tmp_path]).splitlines()[-1] == (
        f"| {tmp_path} | 2000 | 20.0% | 30.0% | no better than chance | loss 8.300, 8.300 of a "
        f"network at chance level |"
    )


# Runs made to fail: one layer, compiled in a second
# -----------------------------------------------------------------------

WIDTH, QUEUE, STEPS, TINY_BATCH = 24, 64, 240, 16


def tiny(kind):
    """A method on 64 random images; `kind` is "InfoNCE" or what is wrong with it.

    "batch mean": features may add the mean of their batch, by a learnt weight that starts at 0;
    negatives are a queue's, and noise hides the images but not their mean. This is what batch norm
    offers a method whose keys are not shuffled."""
    queue = kind == "batch mean"

    def variables(key, batch):
        weights = 0.1 * jax.random.normal(key, (48, WIDTH))
        rows = unit(jax.random.normal(jax.random.fold_in(key, 1), (QUEUE, WIDTH)))
        return Variables(
            {"w": weights, "b": jnp.zeros(WIDTH), "share": jnp.zeros(())},
            {"mean": jnp.zeros(WIDTH)},
            memory=queues.init(key, QUEUE, WIDTH) if queue else rows,
        )

    def network(params, stats, x, train):
        x = jnp.zeros_like(x) if kind == "constant" else x
        h = x @ params["w"] + params["b"][None]
        mean = lax.pmean(jnp.mean(h, axis=0), parallel.AXIS) if train else stats["mean"]
        return h + 8 * params["share"] * mean[None] * queue, {
            "mean": 0.9 * stats["mean"] + 0.1 * lax.stop_gradient(mean)
        }

    def views(batch, key):
        def view(number):
            def one(image, i, size):
                noise = jax.random.normal(
                    jax.random.fold_in(jax.random.fold_in(key, i), number), image.shape
                )
                return image / 255.0 - 0.5 + size * noise

            ids, sizes = batch["id"], jnp.full(len(batch["id"]), 0.3)
            if queue:  # rows in twos share a large noise with opposite signs
                ids, sizes = jnp.repeat(ids[::2], 2), jnp.where(jnp.arange(len(ids)) % 2, 1.0, -1.0)
            return jax.vmap(one)(batch["image"], ids, sizes)

        return [view(1), view(2)]

    def forward(params, stats, target, inputs, batch, key):
        (a, after), (b, _) = (network(params, stats, x.reshape(-1, 48), True) for x in inputs)
        return {"a": unit(a), "b": unit(b)}, after, None

    def loss(outputs, params, memory, batch, key):
        a, b = outputs["a"], outputs["b"]
        if kind == "no negatives, no stop-gradient":
            return -lax.pmean(jnp.mean(jnp.sum(a * b, axis=1)), parallel.AXIS), Aux({}, memory)
        if queue:
            k = lax.stop_gradient(b)
            value = nce.queue_softmax(a, k, memory.rows, temperature=0.2, axis_name=parallel.AXIS)
            return value, Aux(
                {"chance": jnp.float32(np.log(QUEUE + 1))},
                queues.enqueue(memory, parallel.gather(k, parallel.AXIS)),
            )
        temperature = 1000.0 if kind == "temperature 1000" else 0.2
        value = losses.nt_xent(a, b, temperature=temperature, axis_name=parallel.AXIS)
        return value, Aux({"chance": jnp.float32(np.log(2 * TINY_BATCH - 1))}, memory)

    tx, _ = optim.build(
        name="adamw",
        learning_rate=1e-2,
        learning_rate_scaling="none",
        schedule="constant",
        weight_decay=0.0,
        batch_size=TINY_BATCH,
        steps_per_epoch=4,
        total_steps=STEPS,
    )

    def features(params, stats, images, train):
        h, stats = network(params, stats, images.reshape(-1, 48), train)
        return {"h": h}, stats

    return from_loss(
        variables=variables,
        views=views,
        needs=("image",),
        forward=forward,
        loss=loss,
        tx=tx,
        axis_name=parallel.AXIS,
        features=features,
        clean=lambda batch: batch["image"] / 255.0 - 0.5,
    )


@pytest.mark.parametrize(
    "kind, wanted",
    [
        ("InfoNCE", HEALTHY),
        pytest.param("no negatives, no stop-gradient", COLLAPSED, marks=pytest.mark.slow),
        ("batch mean", LEAKING),
        pytest.param("constant", COLLAPSED, marks=pytest.mark.slow),
        pytest.param("temperature 1000", CHANCE, marks=pytest.mark.slow),
    ],
)
def test_tiny_runs(kind, wanted, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), np.uint8)
    source = from_arrays("random", {"image": images}, {})
    facts = Run(parallel.AXIS, TINY_BATCH, 64, 4, STEPS, {})
    built = Built(
        tiny(kind),
        Splits(source, source),
        facts,
        parallel.make_mesh(1),
        lambda step: 1e-2,
        evaluators={"geometry": geometry.make()},
    )
    config = ConfigDict(
        dict(
            seed=0,
            batch_size=TINY_BATCH,
            nonfinite="stop",
            dispatch_steps=0,
            log_steps=10,
            evals=dict(batch_size=32, feature="h"),
        )
    )
    evaluator = loop.evaluation_of(built, config, tmp_path)
    state = initial_state(built, config)
    rows = [{"step": 0} | evaluator.baselines(state)]
    steps = stepper(built, config, 0)
    for step in range(STEPS):
        state, values = steps(state)
        if step % 10 == 9:
            rows.append(
                {"step": step + 1, "epoch": (step + 1) / 4}
                | {name: float(x) for name, x in values.items()}
            )
    rows.append({"step": STEPS} | evaluator.measure(state))
    found = diagnose(rows, STEPS / 4)
    assert found.name == wanted, (found, rows[0], rows[-1])


# A whole run made to fail
# --------------------------------------


@pytest.mark.slow
def test_an_absurd_temperature(tmp_path, capfd):
    config = simclr_v1.get_config("debug")
    config.devices, config.total_epochs, config.log_steps, config.evals.every_epochs = (
        1,
        10.0,
        8,
        5.0,
    )
    config.method.temperature = 1000.0
    config = loop.stages(config, tmp_path)[0][1]
    loop.train(config, tmp_path)
    found = diagnose(metrics.read(tmp_path), config.total_epochs)
    assert found.name == CHANCE, found
    assert "verdict: no better than chance" in capfd.readouterr().err  # and the run said so itself


def test_a_run_without_knn_or_geometry_was_evaluated():
    """Of a run of reinforcement learning: its evaluator is another."""
    rows = [
        {"step": 1500, "loss": 1.0, "epoch": 3.0, "learning_rate": 1e-3},
        {"step": 1500, "returns/mean": 0.7, "eval_seconds": 1.0},
    ]
    found = diagnose(rows, EPOCHS)
    assert found.name == EARLY and "evaluators of this run have no figure" in found.evidence
    rows[0]["chance"] = 2.0
    assert diagnose(rows, EPOCHS).name == HEALTHY
    rows[0]["loss"] = 2.0
    assert diagnose(rows, EPOCHS).name == CHANCE
