"""`gigagan train --nproc N`: N ranks on this machine, all started anew when one dies. torchrun does it on many.

A restart meets nothing of the attempt before: every attempt has a port, and so a store, of its own.
"""

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from gigagan.lifetime import die_with_parent

log = logging.getLogger(__name__)

FAILURES = 3
"""So many attempts in a row that died before their first step end the run."""
ENDED = (0, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a rank that ended of its own accord: done, the user's mistake, asked to stop."""
POLL_SEC = 0.05
TELLS_SEC = 2.0
"""When a rank has died the others may tell more: so long they have."""
REFUSED = 2
REFUSED_SEC = 20.0
"""A mistake that only one rank met leaves the others waiting for it: so long they have."""


class _Ranks:
    """The processes of one attempt, and what they were asked."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.asked: list[int] = []

    def ask(self, number: int, frame: object) -> None:
        """The first signal is passed on, so that the run saves and ends; the second one kills."""
        self.asked.append(number)
        self.send(number if len(self.asked) == 1 else signal.SIGKILL)

    def send(self, number: int) -> None:
        """To every rank that runs. Its readers end with it; what clears up their semaphores lives a moment longer."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def start(self, command: Sequence[str], count: int, environment: Mapping[str, str], attempt: int) -> None:
        """All ranks of an attempt."""
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "TORCHELASTIC_RESTART_COUNT": str(attempt),
        }
        threads = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // count, 1))}
        self.processes = [
            subprocess.Popen(
                command,
                env={**threads, **environment, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            for rank in range(count)
        ]

    def wait(self) -> list[tuple[int, int]]:
        """Until all have ended; (rank, exit code) of those that did so by themselves, in order."""
        ended: dict[int, int] = {}
        deadline = float("inf")
        while len(ended) < len(self.processes):
            for rank, process in enumerate(self.processes):
                if rank not in ended and (code := process.poll()) is not None:
                    ended[rank] = code
                    if code not in ENDED or code == REFUSED:
                        left = REFUSED_SEC if code == REFUSED else TELLS_SEC
                        deadline = min(deadline, time.monotonic() + left)
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SEC)
        self.send(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        return list(ended.items())


def launch(
    command: Sequence[str], count: int, *, environment: Mapping[str, str], progress: Callable[[], object]
) -> int:
    """Run `command` as `count` ranks until they end; the exit code.

    `progress` tells how far the run got, by whatever changes when a step is done. A run that dies at the same step
    again and again ends itself (training.attempts); here those end that never come to a step.
    """
    failures = attempt = 0
    with _signals_to(_Ranks()) as ranks:
        while True:
            before = progress()
            ranks.start(command, count, environment, attempt)
            if ranks.asked:  # between two attempts
                ranks.send(ranks.asked[0])
            ended = ranks.wait()
            codes = [code for _, code in ended]
            if wanted := [code for code in codes if code in ENDED and code]:
                return wanted[0]
            if ranks.asked:
                return 128 + ranks.asked[0]
            if codes == [0] * count:
                return 0
            rank, code = next(one for one in ended if one[1] not in ENDED)
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            failures = failures + 1 if progress() == before else 0
            if failures == FAILURES:
                log.error("rank %d %s; %d attempts in a row came to no step", rank, how, failures)
                return 1
            attempt += 1
            log.warning("rank %d %s; all ranks start anew (restart %d)", rank, how, attempt)


@contextmanager
def _signals_to(ranks: _Ranks) -> Iterator[_Ranks]:
    before = {number: signal.signal(number, ranks.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ranks
    finally:
        ranks.send(signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
