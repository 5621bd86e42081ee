"""What runs in the child process of `infra.child`: an agent on its workbench, and a loop over calls."""

import ctypes
import faulthandler
import logging
import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from infra.child import BEGUN, READY
from infra.workbench import Workbench, WorkResult, error_text

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(socket_number: int, parent_pid: int) -> None:
    """Serve the parent at the other end of a socket until it closes it, or dies.

    What comes through the socket is pickled by the parent, in this product's own code.
    """
    _die_with(parent_pid)
    _leave_interrupts_to_the_parent()
    faulthandler.enable()
    logging.getLogger().setLevel(logging.INFO)
    os.set_inheritable(socket_number, False)
    pipe = Connection(socket_number)
    try:
        _serve(pipe)
    except (EOFError, OSError):  # the parent is gone, and nobody is left to be told
        os._exit(1)


def _serve(pipe: Connection) -> None:
    factory = pipe.recv_bytes()
    try:
        bench: Workbench[Any, Any] = Workbench(pickle.loads(factory), own_thread_only=False)  # noqa: S301
    except Exception as error:  # noqa: BLE001 - told to the parent
        pipe.send_bytes(error_text(error).encode())
        return
    pipe.send_bytes(READY)
    while jobs := pipe.recv_bytes():
        pipe.send_bytes(BEGUN)
        pipe.send_bytes(_answer(bench, jobs))
    bench.close()


def _answer(bench: Workbench[Any, Any], jobs: bytes) -> bytes:
    try:
        return pickle.dumps(bench.work(pickle.loads(jobs)), pickle.HIGHEST_PROTOCOL)  # noqa: S301
    except Exception as error:  # noqa: BLE001 - what does not pickle costs its jobs only
        return pickle.dumps(WorkResult[Any](None, error_text(error), (), 0.0))


def _die_with(parent_pid: int) -> None:
    """Die when the parent does, in the middle of a call too: what holds a GPU must not outlive its actor.

    Linux only; elsewhere the child ends when it next reads from the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before we asked
            os._exit(1)


def _leave_interrupts_to_the_parent() -> None:
    # Ctrl-C reaches the whole process group; Ray's workers block it for what they start
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
