"""Signals that end a run: SIGINT (Ctrl-C), SIGTERM and SIGHUP all end it in order, once.

The first becomes a `KeyboardInterrupt` where the run happens to be. From then on, and once a run writes its result,
further ones are ignored: what is being written has to become whole. A run that was started to outlive its terminal
(`nohup`) keeps ignoring SIGHUP.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndOnSignal:
    """While the block runs, the first signal raises `KeyboardInterrupt` and later ones are ignored.

    with EndOnSignal() as ending:
        ...
        ending.hold()      # from here on none is answered
    """

    def __init__(self) -> None:
        self.name: str | None = None
        """Of the signal that came, such as `SIGTERM`."""
        self._held = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> EndOnSignal:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN and before is not None:
                    self._before[number] = before
                    signal.signal(number, self._answer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def hold(self) -> None:
        """Answers no signal any more."""
        self._held = True

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            os.write(2, b"already ending: the result is being written\n")
            return
        self._held = True
        self.name = signal.Signals(number).name
        raise KeyboardInterrupt(self.name)
