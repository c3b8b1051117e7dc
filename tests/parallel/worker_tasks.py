"""Tasks that end their worker, or fail; without torch, which would take each of them seconds."""

import os
import signal


def _is_first(flag):
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def kill_once(flag, number, array):
    """Kill the process that is the first to come here; else compute something."""
    if _is_first(flag):
        os.kill(os.getpid(), signal.SIGKILL)
    return number * array.sum()


def fail_once(flag):
    if _is_first(flag):
        raise ValueError("on purpose")
    return "tried again"
