"""How far a long command has come: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SECONDS = 10.0


class Progress:
    """A context in which `advance` says that so many more of `total` are done, on standard error.

    what: the words in front, such as "embedding". done: how many were done before.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.start, self.done = what, total, done, done
        self.began = self.told = time.monotonic()
        console = Console(file=sys.stderr)
        self.bar = None
        if console.is_terminal:
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self.task = self.bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    @property
    def rate(self) -> float:
        """Done a second, since the start."""
        return (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, note=self._rate())
        elif now - self.told >= SECONDS:
            self.told = now
            left = round((self.total - self.done) / max(self.rate, 1e-9))
            print(
                f"{self.what} {self.done:,} of {self.total:,}, {self._rate()}, "
                f"{left // 60}:{left % 60:02d} left",
                file=sys.stderr,
                flush=True,
            )

    def _rate(self) -> str:
        return f"{self.rate:,.{0 if self.rate >= 9.95 else 1}f}/s"
