"""Signals that ask a run to stop."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

#: Exit code of a run that was asked to stop, finished its iteration and saved: start it again with ``resume=auto``.
STOPPED = 75  # EX_TEMPFAIL of sysexits.h

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

_ECHO_SECONDS = 1.0


def leave_signals_to_parent(_: int = 0) -> None:
    """In a process that reads data: ignore them, as a launcher or Slurm sends them to all processes of a run.

    It ends when its parent does.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopSignals:
    """Within this context SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are noted in ``received`` and no more.

    The second ends the process at once, with 128 plus its number: what is half written then does not count, and the
    last checkpoint is whole. (The same again within a second is the first's echo: Slurm signals torchrun and also the
    processes that torchrun hands it on to.) Where the handlers cannot be set, outside the main thread, nothing is
    noted.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if number == signal.SIGTERM and signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN):
                continue  # submitit lets it pass, as Slurm sends it beside the signal that matters
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
        elif number != self.received or time.monotonic() - self._received_at > _ECHO_SECONDS:
            os._exit(128 + number)

    def hand_on(self) -> None:
        """Give the signal to whoever handled it before, such as submitit, which puts the job back into the queue."""
        handler: Callable[[int, FrameType | None], Any] | Any = self._previous.get(self.received)  # type: ignore[arg-type]
        if self.received is not None and self.received != signal.SIGINT and callable(handler):
            handler(self.received, None)
