"""Signals that stop a run."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

#: Exit code of a run that was stopped by a signal after an iteration and a checkpoint; ``resume=auto`` continues it.
STOPPED = 75  # EX_TEMPFAIL of sysexits.h

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

_ECHO_SECONDS = 1.0


def leave_signals_to_parent(_: int = 0) -> None:
    """Ignore signals in a data loading process, as launchers and Slurm send them to all processes of a run.

    The process ends with its parent.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Interrupted(KeyboardInterrupt):
    """A signal outside a training."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


class StopRequestedError(Exception):
    """A signal to a process of a run, at a point at which all processes can stop."""


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


def wants_traceback() -> bool:
    """True if the user asks for tracebacks with HYDRA_FULL_ERROR=1."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


@contextmanager
def interruptible(traceback: bool) -> Iterator[None]:
    """Context that a signal ends in one line, with exit code 128 plus its number; with ``traceback``, it is raised.

    SIGTERM, SIGUSR1 and SIGUSR2 raise :class:`Interrupted` in it, as SIGINT raises KeyboardInterrupt. Handlers of
    others, such as submitit's, stay in place, and outside the main thread nothing changes.
    """
    changed = []
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _interrupt)
                changed.append(number)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if traceback:
            raise
        number = interrupt.signal if isinstance(interrupt, Interrupted) else signal.SIGINT
        print(f"interrupted by {number.name}", file=sys.stderr)
        sys.exit(128 + number)
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


class StopSignals:
    """Context that records SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 in ``received``, without any other effect.

    A second signal ends the process at once with exit code 128 plus its number; the last checkpoint stays intact. The
    same signal again within a second is ignored: Slurm signals both torchrun and the processes to which torchrun passes
    the signal on. Outside the main thread no handlers can be set, and no signal is recorded.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            ours = (signal.SIG_DFL, signal.SIG_IGN, _interrupt)
            if number == signal.SIGTERM and signal.getsignal(number) not in ours:
                continue  # submitit ignores it, as Slurm sends it in addition to the requeue signal
            try:
                self._previous[number] = signal.signal(number, self._record)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
        elif number != self.received or time.monotonic() - self._received_at > _ECHO_SECONDS:
            os._exit(128 + number)

    def hand_on(self) -> None:
        """Pass the signal to the previous handler, such as submitit's, which requeues the job."""
        handler: Callable[[int, FrameType | None], Any] | Any = self._previous.get(self.received)  # type: ignore[arg-type]
        if self.received not in (None, signal.SIGINT) and callable(handler) and handler is not _interrupt:
            handler(self.received, None)
