"""A killed agent takes its workers with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

WORKER = """
import time
from megatron_grow.parallel.parent import end_with_agent
end_with_agent()
print("ready", flush=True)
time.sleep(60)
"""
AGENT = f"""
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", {WORKER!r}], stdout=subprocess.PIPE)
worker.stdout.readline()
print(worker.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("by_torchrun", [True, False])
def test_workers_of_a_killed_agent(by_torchrun: bool) -> None:
    environment = {**os.environ, **({"TORCHELASTIC_RUN_ID": "x"} if by_torchrun else {})}
    with subprocess.Popen(
        [sys.executable, "-c", AGENT], stdout=subprocess.PIPE, text=True, env=environment
    ) as agent:
        assert agent.stdout is not None
        worker = psutil.Process(int(agent.stdout.readline()))
        agent.send_signal(signal.SIGKILL)
    if by_torchrun:
        deadline = time.monotonic() + 60
        while psutil.pid_exists(worker.pid) and worker.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    else:  # a shell's child, say
        time.sleep(0.5)
        assert worker.status() != psutil.STATUS_ZOMBIE
        worker.kill()
