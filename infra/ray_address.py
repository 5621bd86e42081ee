"""Addresses of Rays, without Ray itself, which takes a second to import; only what `auto` stands for is asked of it."""

import socket

LOOPBACK = "127.0.0.1"
"""Where dashboards listen."""
_KNOCK_S = 5.0


def knock(address: str) -> str:
    """Try the port of a cluster: Ray itself needs two minutes to give up, and then exits the process.

    Returns the address as host:port, which for `auto` is that of RAY_ADDRESS, else of the Ray that was last started on
    this machine. Raises OSError where nothing answers, ValueError for an address of another form.
    """
    found = _found_by_ray() if address == "auto" else address
    host, _, port = found.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"an address is auto or host:port of the head node, got {found!r}")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    return found


def _found_by_ray() -> str:
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return canonicalize_bootstrap_address("auto") or "local"
    except ConnectionError as error:  # Ray's own text names options of other commands
        raise ConnectionError("no Ray runs on this machine, and RAY_ADDRESS names none") from error
