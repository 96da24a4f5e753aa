"""A command as a process of its own, with what it cost."""

import json
import os
import subprocess
import sys
import tempfile
import time


def measured(command):
    """{"seconds", "peak_gb"} of a command, whose output is shown; it must succeed.

    The peak is that of the largest process in it. Linux hands a process the peak of the one that
    starts it, so a small one stands between.
    """
    command = [str(part) for part in command]
    with tempfile.NamedTemporaryFile() as figures:
        if subprocess.run([sys.executable, __file__, figures.name, *command]).returncode:
            sys.exit(f"{' '.join(command)} failed, see above")
        return json.load(figures)


if __name__ == "__main__":
    began = time.monotonic()
    process = subprocess.Popen(sys.argv[2:])
    _, status, usage = os.wait4(process.pid, 0)
    seconds, peak = time.monotonic() - began, usage.ru_maxrss * 1024
    with open(sys.argv[1], "w") as file:
        json.dump({"seconds": round(seconds, 1), "peak_gb": round(1e-9 * peak, 2)}, file)
    sys.exit(os.waitstatus_to_exitcode(status))
