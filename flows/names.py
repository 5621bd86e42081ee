"""The console script, behind the guard of our six top-level names.

Another distribution that ships one of them would shadow or break ours, so nothing of ours is imported before the check.
"""

import os
import signal
import sys
from importlib.metadata import packages_distributions
from typing import NoReturn

PACKAGES = ("agents", "benchmark", "flows", "infra", "model", "schemas")
DISTRIBUTION = "videorefer"


def check_names() -> str | None:
    """One line that names the rival distribution and what to do, or None where all six names are ours."""
    owners = packages_distributions()
    rivals = {name: sorted(set(owners.get(name, [])) - {DISTRIBUTION}) for name in PACKAGES}
    for name, others in rivals.items():
        if others:
            return (
                f"the import package {name!r} is also installed by {', '.join(others)}; "
                f"install {DISTRIBUTION} in an environment of its own"
            )
    return None


def main() -> None:
    """Refuse with one line where a name is not ours alone, else run the command line."""
    if problem := check_names():
        sys.stderr.write(f"error: {problem}\n")
        raise SystemExit(1)
    signal.signal(signal.SIGTERM, _interrupt)
    # threads that spin while they wait take the processor from other programs' threads, which wait for them in turn;
    # it counts where it is set before torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from flows.cli import main as run  # takes a second, in which an interrupt may come

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; the same command goes on from here\n")
        raise SystemExit(130) from None


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
