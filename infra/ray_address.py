"""Addresses of Rays, without Ray itself, which takes a second to import."""

import socket

LOOPBACK = "127.0.0.1"
"""Where dashboards listen."""
_KNOCK_S = 5.0


def knock(address: str) -> None:
    """Try the port of a cluster: Ray itself needs two minutes to give up, and then exits the process.

    Raises OSError where nothing answers, ValueError for an address of another form.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("an address is auto or host:port of the head node")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
