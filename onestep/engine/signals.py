"""Signals that stop a run."""

import os
import signal
import time
from collections.abc import Callable
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
            if number == signal.SIGTERM and signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN):
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
        if self.received is not None and self.received != signal.SIGINT and callable(handler):
            handler(self.received, None)
