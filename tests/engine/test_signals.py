"""Signals that stop a run."""

import os
import signal
import subprocess
import sys

import pytest

from onestep.engine.signals import StopSignals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_the_first_is_noted_and_no_more(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    "first, pause, second, code",
    [
        ("SIGTERM", 0.2, "SIGTERM", 143),
        ("SIGUSR1", 0.0, "SIGINT", 130),
        ("SIGTERM", 0.0, "SIGTERM", 0),  # the same signal again, from a launcher
    ],
)
def test_the_second_ends_the_process_at_once(first: str, pause: float, second: str, code: int) -> None:
    script = (
        "import os, signal, time\nfrom onestep.engine import signals\nsignals._ECHO_SECONDS /= 10\n"
        f"with signals.StopSignals():\n os.kill(os.getpid(), signal.{first})\n time.sleep({pause})\n"
        f" os.kill(os.getpid(), signal.{second})\nos._exit(0)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == code


def test_it_is_handed_on_to_who_had_it_before() -> None:
    """Handlers like submitit's, which requeues a job at SIGUSR2 and ignores SIGTERM."""
    heard: list[int] = []
    before = {
        number: signal.signal(number, lambda n, _: heard.append(n)) for number in (signal.SIGUSR2, signal.SIGTERM)
    }
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == [signal.SIGTERM] and signals.received is None
            os.kill(os.getpid(), signal.SIGUSR2)
            assert heard == [signal.SIGTERM] and signals.received == signal.SIGUSR2
            signals.hand_on()
            assert heard == [signal.SIGTERM, signal.SIGUSR2]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
