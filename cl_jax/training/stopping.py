"""Signals: a run that receives one saves first, at a step that all its processes agree on.

SIGTERM, SIGINT (Ctrl-C) and SIGHUP are one request. Nothing here imports jax before it is needed,
so that a command can listen from its beginning.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STOPPED = 75  # EX_TEMPFAIL: schedulers requeue a job that ends with it
KILLED = 130  # as of a program that Ctrl-C ended
ANSWER = 1.0  # seconds in which Python code answers a signal; compiled code does not
# seconds in which one of several processes that failed may end in good order; the others may wait
# for it
PATIENCE = 2.0
UNWIND = 3.0  # seconds in which a program that was stopped may close its files


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run. It saved first, or had nothing to save; the same command resumes
    it."""


def behind(error: BaseException | None) -> Interrupted | None:
    """The stop that another error stands for: where jax compares trees in C, it turns what is
    raised meanwhile into a ValueError."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__
    return error


class Stop:
    """Listens for signals while it is entered.

    `safe` is the phase in which nothing would be lost by leaving at once: while the run starts,
    between stages, and in an evaluation, whose State is saved before. A signal then raises
    `Interrupted`. In any other phase it is remembered, and the loop asks by `asked` after each
    dispatch.

    A second SIGINT ends the program without a save, unless a checkpoint is being written: then the
    third does. Other signals may come as often as they like.

    Args:
      hard: a thread ends the process where compiled code does not let Python answer: for commands.
    """

    def __init__(self, hard: bool = False):
        self.hard, self.safe, self.saving = hard, True, False
        self.where = "while starting"
        self.told: str | None = None  # the name of the first signal
        self.interrupts = self.calls = 0
        self.joined = False  # several processes: jax.distributed itself listens for SIGTERM
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is not threading.main_thread():
            return self
        self.joined = self.joined or _several_processes()
        for number in SIGNALS:
            ignored = signal.getsignal(number) == signal.SIG_IGN  # by nohup, or a shell's &
            if not ignored and not (self.joined and number == signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        if self.hard:
            self.reader, self.writer = os.pipe()
            os.set_blocking(self.writer, False)
            self.woken = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.hard and self.before:
            signal.set_wakeup_fd(self.woken)
            os.close(self.writer)  # the thread ends
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def join(self) -> None:
        """To be called once the process has joined its job: jax.distributed then has put a handler
        of its own in place for SIGTERM."""
        self.joined = _several_processes()
        if not self.joined and signal.SIGTERM in self.before:
            signal.signal(signal.SIGTERM, self._handle)

    def asked(self) -> bool:
        """True once the run is to stop, on every process at the same call. Each process calls it
        once per dispatch and once per block of an evaluation."""
        if _several_processes():
            # Catches SIGTERM to any of them, and lets them agree on a call, which it names once.
            from jax.experimental import multihost_utils

            self.calls += 1
            if multihost_utils.reached_preemption_sync_point(self.calls) and not self.told:
                self.told = "SIGTERM to a process of the job"
        return self.told is not None

    def check(self) -> None:
        """Raises `Interrupted` if the run is to stop, where nothing would be lost."""
        if self.asked():
            raise self.interrupted()

    def nothing_to_lose(self, where: str) -> None:
        """Begins a phase in which leaving at once loses nothing."""
        self.where, self.safe = where, True
        if self.told and not _several_processes():
            raise self.interrupted()

    def work(self) -> None:
        """Begins a phase that must not be left without a save."""
        self.safe = False

    def interrupted(self) -> Interrupted:
        return Interrupted(f"{self.told}: stopped {self.where}; the same command resumes there.")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.joined:
            if number == signal.SIGINT:
                self._interrupt()
            # One request for all processes, which jax.distributed passes on.
            os.kill(os.getpid(), signal.SIGTERM)
            return
        first = self.told is None
        self.told = self.told or name
        if number == signal.SIGINT:
            self._interrupt()
        if self.safe:
            if first and self.hard and _importing(frame):
                leave(STOPPED, str(self.interrupted()))
            if first:
                raise self.interrupted()
        elif first:
            _say(f"{name}: saving after this step, then ending.")

    def _interrupt(self) -> None:
        """Ends the program at the second Ctrl-C, at the third while a checkpoint is written."""
        self.interrupts += 1
        if self.interrupts == 1:
            if not self.safe:
                _say("Ctrl-C once more ends at once, without saving.")
        elif self.saving and self.interrupts == 2:
            _say("the checkpoint is being written; Ctrl-C once more ends without it.")
        elif self.hard:
            leave(KILLED, "ended without saving; the same command resumes the newest checkpoint.")
        else:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """Ends the process where its main thread is in compiled code and cannot."""
        while number := os.read(self.reader, 1):
            if number[0] not in SIGNALS:
                continue
            time.sleep(ANSWER)
            if self.told is None and self.safe and not self.joined:
                leave(STOPPED, f"stopped {self.where}; the same command resumes there.")
            if self.told is not None and self.safe:
                time.sleep(UNWIND)
                leave(STOPPED, f"{self.told}: stopped {self.where}.")
        os.close(self.reader)


def leave(status: int, message: str = "") -> None:
    """Ends the process at once, without waiting for other threads or processes."""
    if message:
        _say(message)
    for stream in (sys.stdout, sys.stderr):
        _quietly(stream.flush)
    os._exit(status)


def end(status: int) -> NoReturn:
    """Ends a program with the status of its command. One that was stopped does not wait for what
    XLA still compiles in other threads, at whose end Python may crash."""
    if status in (STOPPED, KILLED) and not _several_processes():
        leave(status)
    sys.exit(status)


def end_by_ctrl_c() -> None:
    """Lets Ctrl-C end a program at once where a module is imported, and raise KeyboardInterrupt
    elsewhere."""

    def handle(_: int, frame: FrameType | None) -> None:
        if _importing(frame):
            leave(KILLED)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, handle)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: compiled ones turn an exception that a signal raises
    there into an ImportError, or crash."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def leave_within(seconds: float, status: int) -> None:
    """Ends the process after so many seconds, should it still be there."""

    def wait() -> None:
        time.sleep(seconds)
        leave(status)

    threading.Thread(target=wait, daemon=True).start()


def _say(text: str) -> None:
    # Of a signal handler: no locks. A progress bar hides the cursor.
    show = "\x1b[?25h" if sys.stderr.isatty() else ""
    _quietly(lambda: os.write(2, f"{show}\n{text}\n".encode()))


def _quietly(call: Callable[[], Any]) -> None:
    try:
        call()
    except (OSError, ValueError):
        pass


def _several_processes() -> bool:
    distributed = getattr(sys.modules.get("jax"), "distributed", None)
    if distributed is None or not distributed.is_initialized():
        return False
    import jax

    return jax.process_count() > 1
