"""What a run's own log says of it: healthy, or what is wrong, the likely cause and the usual mend.
Printed at evaluations.

    cl-jax diagnose WORKDIR...      the verdict at each evaluation of finished or running runs, as a
    table
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cl_jax.core.errors import ConfigError
from cl_jax.training import configs, metrics
from cl_jax.training.workdir import path_of

# A verdict before this is guesswork: running statistics, queues and rates are still on their way.
EARLY_EPOCHS, EARLY_STEPS = 2, 1000
# Total variance of unit features, as a share of an isotropic set's, is relative_std squared: 0.1
# leaves 1 % of it. ReLU networks have about 0.6 untrained, with the statistics of a batch, and 0.5
# to 0.85 when well trained.
FLAT_STD = 0.1
# Of the untrained network's effective rank. Well trained runs on `scenes` keep two thirds or more
# of it, failed ones fall below a quarter.
LOST_RANK = 0.25
# How surely batch statistics tell a row's batch (0 by chance, 1 always): so much, and more than
# half of the way from the untrained network's figure to 1, or twice that figure.
MARKED_BATCH = 0.3
# The contrast of training may beat retrieval with running statistics by this much before it is
# taken for a leak.
UNSUPPORTED_TOP1 = 0.2
# A loss within so much of that of a network at chance level. NT-Xent at temperature 1000 is
# within 0.1 %.
NEAR_CHANCE = 0.02
RECENT = 3  # logged rows that the loss is the mean of
# Training has to bring kNN to so much of what it was before the first step, or to leave out so much
# of the errors where it was high already, in the second half of the run at the latest.
BETTER_KNN = 1.05
FEWER_ERRORS = 0.2

HEALTHY, EARLY = "healthy", "too early to tell"
COLLAPSED, COLLAPSING, LEAKING = "collapsed", "collapsing", "leaking"
CHANCE, BELOW_CHANCE, WORSE = (
    "no better than chance",
    "worse than chance",
    "no better than at the start",
)


class Verdict(NamedTuple):
    """`name` is one of the constants above; `evidence` the figures it rests on; `advice` likely
    cause and mend, or ""."""

    name: str
    evidence: str
    advice: str = ""

    def __str__(self) -> str:
        return f"verdict: {self.name} ({self.evidence})." + f" {self.advice}" * bool(self.advice)


def diagnose(rows: Sequence[dict[str, float]], total_epochs: float) -> Verdict:
    """The verdict at the newest evaluation of a log, which may be cut anywhere after it.

    Args:
      rows: `metrics.read(workdir)`: the step 0 row with the untrained network's figures, rows of
        "loss", and evaluations. What a row does not have is not judged by.
      total_epochs: of the whole run.

    Causes come before their effects: a leak before the collapse that it leads to, a collapse before
    a low kNN.
    """
    ends = [i for i, row in enumerate(rows) if evaluated(row)]
    if not ends:
        return Verdict(EARLY, "nothing was evaluated yet")
    since = rows[ends[-2] + 1 if len(ends) > 1 else 0 : ends[-1]]
    training = [row for row in since if "loss" in row] or [
        row for row in rows[: ends[-1]] if "loss" in row
    ][-1:]
    start = {name: value for row in rows if row["step"] == 0 for name, value in row.items()}
    now = rows[ends[-1]]
    step, epoch = now["step"], max((row.get("epoch", 0.0) for row in training), default=0.0)
    if step < EARLY_STEPS and epoch < EARLY_EPOCHS:
        return Verdict(EARLY, f"step {step:.0f}, epoch {epoch:.2g}")
    loss, chance, contrast, filled = (
        _mean(training[-RECENT:], name)
        for name in ("loss", "chance", "contrast_top1", "queue_filled")
    )
    learnt = now.get("knn/top1", math.nan) > _enough(start.get("untrained/knn/top1", math.nan))
    return (
        _leak(now, start, math.nan if learnt else contrast)
        or _collapse(now, start)
        or (_chance(loss, chance) if not learnt or loss > chance else None)
        or _knn(now, start, loss, chance, epoch / total_epochs)
        or _healthy(now, start, loss, chance, filled)
    )


def _leak(now: dict[str, float], start: dict[str, float], contrast: float) -> Verdict | None:
    marked, before = (
        now.get("pairs/same_batch", math.nan),
        start.get("untrained/pairs/same_batch", 0.0),
    )
    if marked > max(MARKED_BATCH, min(2 * before, (1 + before) / 2)):
        return Verdict(
            LEAKING,
            f"features tell their batch, {marked:.2f} of the way from chance to always; untrained "
            f"{before:.2f}",
            "Batch norm gives the positive away: query and key share statistics that other "
            "candidates have not. "
            "Shuffle the keys (MoCo: shuffle=True), normalise over all devices (splits=1) with "
            "negatives of the "
            "same batch, or use a norm without batch statistics.",
        )
    # These pairs are of two pictures where training's may be two views of one; a kNN that got
    # better says that this is why.
    retrieved = now.get("pairs/top1", math.nan)
    if contrast - retrieved > UNSUPPORTED_TOP1 and contrast > 3 * retrieved:
        return Verdict(
            LEAKING,
            f"training tells {contrast:.0%} of its positives, running statistics {retrieved:.0%}",
            "Something but the images gives the positive away: batch statistics (shuffle the "
            "keys, splits=1), or "
            "that keys of a queue are older than the positive (momentum nearer to 1, a lower "
            "learning rate, a "
            "shorter queue).",
        )
    return None


def _collapse(now: dict[str, float], start: dict[str, float]) -> Verdict | None:
    spread = now.get("geometry/relative_std", math.nan)
    if spread < FLAT_STD:
        return Verdict(
            COLLAPSED,
            f"features deviate by {spread:.3f} of an isotropic set's, effective rank "
            f"{now.get('geometry/effective_rank', math.nan):.1f}",
            "All images get nearly one feature. Without negatives, look for what keeps a method "
            "from the "
            "constant: stop-gradient, predictor, momentum target, centring. Else the network has "
            "died: lower the "
            "learning rate or the weight decay, lengthen the warm-up.",
        )
    rank, before = (
        now.get("geometry/effective_rank", math.nan),
        start.get("untrained/geometry/effective_rank", math.nan),
    )
    if rank < LOST_RANK * before:
        return Verdict(
            COLLAPSING,
            f"effective rank {rank:.1f}, {before:.1f} untrained",
            "Features keep to few directions. Likely a learning rate too high for this batch or a "
            "warm-up too "
            "short, a momentum target that moves too fast, a shortcut that leaves the rest "
            "unused, or no "
            "projection head between features and loss: lower the rate first.",
        )
    return None


def _chance(loss: float, chance: float) -> Verdict | None:
    # A kNN above the untrained network's has already said that something is learnt.
    if not chance > 0:
        return None
    if abs(loss - chance) <= NEAR_CHANCE * chance:
        return Verdict(
            CHANCE,
            f"loss {loss:.3f}, {chance:.3f} of a network at chance level",
            "The network cannot distinguish the candidates. Likely a temperature far too high "
            "(0.05 to 0.5 is usual), views "
            "that share nothing, a learning rate so low or high that nothing is learnt, or a long "
            "start: if the "
            "next evaluation says the same, look at the views first.",
        )
    if loss > chance:
        return Verdict(
            BELOW_CHANCE,
            f"loss {loss:.3f}, {chance:.3f} of a network at chance level",
            "Positives are further than negatives. Likely a temperature too low for features that "
            "are still "
            "alike, a target that runs away from its network (momentum nearer to 1), or a rate "
            "too high.",
        )
    return None


def _enough(before: float) -> float:
    """The kNN above which training gained on the untrained network's; NaN without it."""
    return min(BETTER_KNN * before, before + FEWER_ERRORS * (1 - before))


def _knn(
    now: dict[str, float], start: dict[str, float], loss: float, chance: float, share: float
) -> Verdict | None:
    knn, before = now.get("knn/top1", math.nan), start.get("untrained/knn/top1", math.nan)
    if not knn <= _enough(before):
        return None
    evidence = f"kNN {knn:.1%}, {before:.1%} before the first step"
    if share < 0.5:
        return Verdict(EARLY, f"{evidence}, in the first half of the run")
    solved = (
        f", though the loss of {loss:.3f} is below the {chance:.3f} of chance"
        if loss < chance
        else ""
    )
    return Verdict(
        WORSE,
        evidence + solved,
        "The task is learnt by something that the labels do not ask for, such as colour, ground "
        "or place, and "
        "the rest is forgotten: change the views so that two of them share only what matters "
        "(stronger colour "
        "jitter, smaller crops). Or the rate is too high: lower it. Or the run is too short: with "
        "BYOL, SimSiam, "
        "PCL the kNN falls below its start before it rises.",
    )


def _healthy(
    now: dict[str, float], start: dict[str, float], loss: float, chance: float, filled: float
) -> Verdict:
    said = [f"loss {loss:.3f} of {chance:.3f} by chance"] if chance > 0 else []
    for text, name, before, style in (
        ("kNN", "knn/top1", "untrained/knn/top1", ".1%"),
        ("effective rank", "geometry/effective_rank", "untrained/geometry/effective_rank", ".1f"),
    ):
        if name in now:
            said.append(
                f"{text} {now[name]:{style}}"
                + (f", {start[before]:{style}} untrained" if before in start else "")
            )
    said += [f"queue {filled:.0%} filled"] if filled < 1 else []
    if not said:
        return Verdict(
            EARLY, "the evaluators of this run have no figure that a verdict could rest on"
        )
    return Verdict(HEALTHY, "; ".join(said))


def evaluated(row: dict[str, float]) -> bool:
    """Whether a row of a log is an evaluation after the first step, of whatever evaluators."""
    return row["step"] > 0 and not row.keys() & {"loss", "learning_rate", "skipped_steps"}


def _mean(rows: Sequence[dict[str, float]], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else math.nan


def table(workdirs: Sequence[str | Path]) -> str:
    """Markdown: the verdict at every evaluation of some runs, from their own logs.

    Raises:
      NotFoundError: a folder without a run.
      ConfigError: a config.json that cannot be read.
    """
    lines = ["| run | step | kNN | at the start | verdict | because |", "|---|---|---|---|---|---|"]
    for workdir in map(configs.folder_of_run, workdirs):
        rows = metrics.read(workdir)
        total = configs.of_run(workdir).get("total_epochs")
        if not isinstance(total, int | float) or not total > 0:
            raise ConfigError(
                f"{workdir}/config.json has total_epochs={total!r}; expected a number of epochs "
                "above 0. Put back the file that the run wrote."
            )
        before = next(
            (row["untrained/knn/top1"] for row in rows if "untrained/knn/top1" in row),
            math.nan,
        )
        if not any(map(evaluated, rows)):
            there = (path_of(workdir) / "metrics.jsonl").is_file()
            why = "no evaluation is logged" + ("" if there else ": it has no metrics.jsonl")
            lines.append(f"| {workdir} | - | - | - | nothing to say | {why} |")
        for i, row in enumerate(rows):
            if evaluated(row):
                found = diagnose(rows[: i + 1], total)
                lines.append(
                    f"| {workdir} | {row['step']} | {_share(row.get('knn/top1', math.nan))} | "
                    f"{_share(before)} | {found.name} | {found.evidence} |"
                )
    return "\n".join(lines)


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
