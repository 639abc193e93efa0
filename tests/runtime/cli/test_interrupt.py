"""Ctrl-C while an engine is built: one line and 130, whatever the builder's thread does."""

import signal
import subprocess
import sys

import pytest

BUILD = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background starts with it ignored
from diffseg.cli import app
from diffseg.engines.tensorrt import build, pipeline

class Held:
    def __del__(self):
        print("freed", flush=True)  # an engine's builder would still use it

def build_plan(*_, **__):
    held = Held()
    def work():
        time.sleep(1)  # until the main thread waits for this one
        print("building", flush=True)
        time.sleep(60)
    build._interruptible(work, lambda: print("cancelled", flush=True))

pipeline.build_plan = build_plan
sys.argv = ["diffseg", "build", "tiny", "--engine", "tensorrt-rtx"]
app.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_a_build_with_130_and_a_line():
    with subprocess.Popen(
        [sys.executable, "-c", BUILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for expected in ("building tiny (fp16) with tensorrt-rtx", "building", "cancelled"):
            assert process.stdout.readline().strip() == expected
            if expected != "building tiny (fp16) with tensorrt-rtx":
                process.send_signal(signal.SIGINT)  # the second one does not wait for the builder
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, "", "interrupted; no plan of tiny was written\n")


WAITING = """
import os, signal, threading, time
from diffseg.engines.tensorrt import build

signal.signal(signal.SIGINT, signal.default_int_handler)
cancelled = threading.Event()

def work():
    os.kill(os.getpid(), signal.SIGINT)
    assert cancelled.wait(30)
    time.sleep(0.3)
    print("the builder ended", flush=True)

try:
    build._interruptible(work, cancelled.set)
except KeyboardInterrupt:
    print("the interrupt went on", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupted_build_waits_until_the_builder_has_ended():
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("the builder ended\nthe interrupt went on\n", "")
