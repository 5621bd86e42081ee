"""Processes by number and beginning: a number alone may be another's by now."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Self

from schemas.record import Record

_FIRST_NAMESPACE = "pid:[4026531836]"  # of every machine outside containers (linux/proc_ns.h)


class ProcessMark(Record):
    """A process of one machine or container, which `host` names.

    `began` is when it began, in words of the system that only serve to compare.
    """

    host: str
    pid: int
    began: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has this number now; `began` is empty where there is none."""
        return cls(host=_here(), pid=pid, began=began(pid) or "")

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine: of others nothing can be known."""
        return self.host == _here()

    @property
    def runs(self) -> bool:
        """Whether it still runs; only to be asked where `is_here`."""
        return bool(self.began) and began(self.pid) == self.began


def _here() -> str:
    """Name of the machine, or container: two may bear one name and still not see each other's processes."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return platform.node()
    return platform.node() if namespace == _FIRST_NAMESPACE else f"{platform.node()} {namespace}"


def began(pid: int) -> str | None:
    """When a process began; None where there is no such process, or one that ended and was not waited for."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # the name, in brackets, may hold spaces; behind it come the state (field 3) and, in clock ticks from boot, the
        # beginning (field 22), see proc(5)
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    said = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}, check=False)
    return said.stdout.strip() or None
