"""Where numbers go: TensorBoard event files, a JSON-lines log, and a progress line on a
terminal."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter


class Metrics:
    """Writers of one run; process 0 writes, the others stay silent."""

    def __init__(self, workdir: str | Path, total_steps: int, start_step: int = 0):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        self.path = Path(workdir) / "metrics.jsonl"
        _drop_after(self.path, start_step)
        self.lines = self.path.open("a")
        self.board = SummaryWriter(
            str(Path(workdir) / "tensorboard"), purge_step=start_step or None, flush_secs=30
        )
        self.console = Console(file=sys.stderr)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(
            "training", total=total_steps, completed=start_step, note=""
        )
        self.progress.start()
        self.latest: dict[str, float] = {}

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Logs scalars of one step."""
        if not self.active:
            return
        row = {name: float(value) for name, value in values.items()}
        self.lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **row}) + "\n")
        self.lines.flush()
        for name, value in row.items():
            self.board.add_scalar(name, value, step)
        self.latest.update(row)
        note = "  ".join(
            f"{short} {self.latest[name]:.{digits}f}"
            for name, short, digits in (
                ("loss", "loss", 3),
                ("images_per_second", "images/s", 0),
                ("knn/top1", "kNN", 3),
            )
            if name in self.latest
        )
        self.progress.update(
            self.task, completed=max(step, self.progress.tasks[0].completed), note=note
        )
        if not self.console.is_terminal:
            print(
                f"step {step:>7}  " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()),
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        """Prints a line or a block without breaking the progress bar."""
        if self.active:
            self.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        if self.active:
            self.progress.stop()
            self.lines.close()
            self.board.close()


def _drop_after(path: Path, step: int) -> None:
    """Forgets what a killed run logged beyond the checkpoint that this one resumes from."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue  # the last line of a killed run may be cut
    path.write_text("".join(line + "\n" for line in kept))


def read(workdir: str | Path) -> list[dict[str, float]]:
    """The JSON-lines log of a run."""
    path = Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def first_bad(columns: dict[str, np.ndarray]) -> int | None:
    """The first row of metrics [steps] whose loss or gradient norm is not finite."""
    finite = np.logical_and.reduce(
        [np.isfinite(columns[name]) for name in ("loss", "grad_norm") if name in columns]
    )
    return None if finite.all() else int(np.argmin(finite))
