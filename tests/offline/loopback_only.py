"""Lets Python's sockets reach this machine only: used by `tests/conftest.py` and by `sitecustomize.py`."""

import ipaddress
import socket
from typing import Any

attempts: list[str] = []  # hosts asked for; kept because a library may swallow the error


class NetworkBlocked(RuntimeError):
    """A test, or the code under test, tried to leave this machine."""


def check(host: Any) -> None:
    """Refuse any host but this one."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", "0.0.0.0", "::", socket.gethostname()):
        return
    try:
        local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = False
    if not local:
        attempts.append(name)
        raise NetworkBlocked(f"a test may not leave this machine, but {name!r} was asked for")


def install() -> None:
    """Guard connecting, sending and the resolving of names, for the rest of the process."""
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        check(host)
        return resolve(host, *arguments, **options)

    socket.getaddrinfo = getaddrinfo


def _guarded(method: Any) -> Any:
    def guarded(self: socket.socket, *arguments: Any) -> Any:
        if isinstance(arguments[-1], tuple):  # (host, port, ...); the address of a Unix socket is a path
            check(arguments[-1][0])
        return method(self, *arguments)

    return guarded
