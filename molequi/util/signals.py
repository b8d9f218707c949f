"""Signals that end a process."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def listening():
    """A list that receives the signals SIGINT and SIGTERM instead of this process; a second one acts as usual."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def hear(number, frame):
        heard.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, hear)
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
