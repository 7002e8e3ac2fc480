"""Signals that end a run at the next border between steps, instead of in the middle of one."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Asked", "listening"]


class Asked:
    """Which signal asked the run to stop: its number, 0 for none."""

    number = 0


@contextmanager
def listening() -> Generator[Asked]:
    """Note the first SIGINT or SIGTERM; a second one acts as it would have without this. Handlers are put back at the end.

    Outside the main thread Python delivers no signals, and nothing is changed.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        asked.number = number
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
