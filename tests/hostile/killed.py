"""Run a command of diffseg, and kill it at a change of the files in a folder: FOLDER STEP SECONDS COMMAND…

The process kills itself with SIGKILL, `SECONDS` after it has asked for the `STEP`-th change (to open a file for
writing, to rename or to delete one, …). With step 0 it runs to its end, and writes the number of changes as the last
line of stderr.
"""

import atexit
import os
import signal
import sys
import threading
from typing import Any

CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.symlink", "os.truncate")


def watch(folder: str, step: int, seconds: float) -> None:
    """Begin to count changes."""
    count = 0

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writing = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not writing and event not in CHANGES:
            return
        if folder not in str(arguments[0]):
            return
        count += 1
        if count == step:
            if seconds:
                threading.Timer(seconds, kill).start()
            else:
                kill()

    sys.addaudithook(see)
    if not step:
        atexit.register(lambda: sys.stderr.write(f"\n{count}"))


if __name__ == "__main__":
    watch(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    sys.argv = ["diffseg", *sys.argv[4:]]
    from diffseg.cli.app import main

    main()
