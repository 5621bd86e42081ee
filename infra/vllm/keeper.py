"""Runs a command until its parent goes; started as a script with Python's own modules alone.

A server is several processes, and its parent may be killed without a word. So a keeper stands between: it ends the
command's whole process group when the parent ends or dies, which closes its standard input, and when the command's
first process ends. It is two processes, since Ray kills the children of an actor that it ends, but not theirs: the
first is the parent's child and ends as the command did, the second keeps the command. Should that one be killed, the
system sends the command SIGTERM.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # prctl(2)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(grace_s: float, command: list[str]) -> NoReturn:
    """Run the command, which may take `grace_s` from SIGTERM to its end."""
    for number in _SIGNALS:  # the parent decides, and says so by closing the pipe
        signal.signal(number, signal.SIG_IGN)
    first_ended, held_by_first = os.pipe()
    second = os.fork()
    if second:
        os.close(first_ended)
        _, status = os.waitpid(second, 0)
        _end_as(os.waitstatus_to_exitcode(status))
    os.close(held_by_first)
    _end_as(_keep(command, grace_s, (0, first_ended)))


def _keep(command: list[str], grace_s: float, watched: tuple[int, ...]) -> int:
    keeper = os.getpid()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=lambda: _prepare(keeper))
    threading.Thread(target=_end_with, args=(watched, child, grace_s), daemon=True).start()
    status = child.wait()
    _kill_group(child)
    return status


def _prepare(keeper: int) -> None:
    """In the child, before it becomes the command."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray's workers block some
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != keeper:
            os._exit(1)


def _end_with(watched: tuple[int, ...], child: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """End the command once one of the descriptors, to which nobody writes, is closed at its other end."""
    select.select(watched, (), ())
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(grace_s)
    _kill_group(child)


def _kill_group(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _end_as(status: int) -> NoReturn:
    """End with the status, or by the signal, that `subprocess` gives as minus its number."""
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
