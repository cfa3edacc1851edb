"""Ranks that learn that another one has failed or fallen silent, whatever they are waiting for.

A rank that waits for a lost peer hears nothing of it: inside gloo not if the link is cut, inside
NCCL not even signals. So each has a thread that asks the job's store, and that counts the seconds.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from megatron_grow.config.exit_codes import ExitCode
from megatron_grow.parallel import last_words, patience
from megatron_grow.parallel.patience import Limits
from megatron_grow.parallel.roll_call import RollCall

_TICK = 1.0
"""Seconds from one request to the store to the next. Silence and waiting are counted in ticks, so
that a job that was suspended as a whole has not waited."""
_GRACE = 6
"""Ticks in which a rank that has heard of a failure may end by itself, and be counted as alive."""
_SILENCE = timedelta(minutes=2)
"""Without a sign of life, at most: a thread of its own gives one each second."""
_PATIENCE = 10.0
"""Seconds that an answer of the store may take when this rank is about to end."""


class Watch:
    """Ends this process, with a line that says why, when the job has lost a rank."""

    def __init__(self, roll: RollCall, limits: Limits, holds_store: bool) -> None:
        """Begin to watch.

        Args:
            roll: this rank's requests to the job's store.
            limits: how long ranks wait for each other.
            holds_store: whether the store ends with this process.
        """
        self._roll, self._limits, self._holds_store = roll, limits, holds_store
        self._neighbour = (roll.rank - 1) % roll.world_size
        """The rank that this one listens to."""
        self.heard = False
        """Whether another rank has announced its failure."""
        self._store_is_gone = self._cut_off = False
        # Ticks without an answer of the store, without a sign of the neighbour, and of grace.
        self._unanswered, self._silent, self._grace = 0, 0, _GRACE
        self._signs = 0
        self._speaker = threading.Lock()
        self._ended = threading.Event()
        self._requests = ThreadPoolExecutor(1, "store")  # its thread may be caught in a request
        self._asked = self._requests.submit(self._ask)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def announce(self) -> bool:
        """Let the other ranks know that this one fails; whether it is the one to say why."""
        if not self._speaker.acquire(blocking=False):
            self._thread.join()  # which says it, and ends the process
        self._ended.set()
        return self._is_first()

    def let_others_hear(self) -> None:
        """Keep the store until they have."""
        if self._holds_store:
            time.sleep(2 * _TICK)

    def end(self) -> None:
        """Watch no longer; all ranks do so before any of them leaves."""
        self._ended.set()
        self._thread.join()
        self._requests.shutdown()

    def tick(self) -> str | None:
        """Count a second; why this rank cannot go on, if it cannot."""
        wait = patience.current()
        wait.seconds += 1
        if self._asked.done():
            self._unanswered, self._asked = 0, self._requests.submit(self._ask)
        else:
            self._unanswered += 1
        limit = self._limits.pause if wait.pause else self._limits.step
        silence = limit if wait is patience.START else min(limit, self._limits.step, _SILENCE)
        if self._store_is_gone and not self._grace:
            return "rank 0, or the launcher on its host, has ended"
        silent = max(self._unanswered, self._silent)
        if silent >= silence.total_seconds():
            return f"this rank has heard nothing for {silent} s"
        if wait.seconds >= limit.total_seconds():
            field = "pause" if wait.pause else "distributed"
            return (
                f"the ranks have not come together for {wait.seconds} s "
                f"(train.{field}_timeout_minutes)"
            )
        return None

    def _run(self) -> None:
        while not self._ended.wait(_TICK):
            reason = self.tick()
            if self.heard or self._store_is_gone:
                self._grace = max(self._grace - 1, 0)
            if self.heard:
                if not self._grace and self._speaker.acquire(blocking=False):
                    os._exit(ExitCode.FAILED)
            elif reason is not None:
                self._give_up(reason)

    def _ask(self) -> None:
        try:
            self._roll.answer()
            signs = self._roll.signs(self._neighbour)
            self.heard = self.heard or self._roll.failed()
        except Exception:
            self._store_is_gone = True
            return
        self._silent = 0 if signs != self._signs else self._silent + 1
        self._signs = signs

    def _give_up(self, reason: str) -> None:
        """Say ``reason`` and end, unless another rank does."""
        if not self._speaker.acquire(blocking=False):
            return  # the other thread of this process has something to say
        if not self._is_first():
            self.heard = True
            self._speaker.release()
            return
        what = patience.current().what
        last_words.say(
            f"error{last_words.of_this_rank()}: in {what} {reason}{self._who()}; "
            f"{last_words.way_on()}"
        )
        self.let_others_hear()
        os._exit(ExitCode.FAILED)

    def _is_first(self) -> bool:
        """Whether no rank has announced its failure before this one, as far as it can know."""
        if self.heard:
            return False
        try:
            return self._requests.submit(self._roll.announce).result(_PATIENCE)
        except Exception:
            self._cut_off = True
            return self._is_first_of_host()

    def _is_first_of_host(self) -> bool:
        if sys.platform != "linux":
            return True
        # A name in no file system; the kernel forgets it with this process.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._claim.bind(f"\0megatron_grow {_address()} {attempt}")
        except OSError:
            return False
        return True

    def _who(self) -> str:
        """Which ranks are silent now, as far as this one can know."""
        if not self._cut_off:
            try:
                silent = self._requests.submit(self._roll.silent).result(3 * _PATIENCE)
            except Exception:
                self._cut_off = True
        if self._cut_off:
            return f"; no answer from the job's store on {_address()}"
        if not silent:
            return ", though all of them are alive: one is busy, or waits for a file system"
        return f"; no sign of life from {last_words.named(silent)}"


def _address() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
