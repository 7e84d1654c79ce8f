"""The guard against network use works in the test process and in the processes it starts."""

import socket
import subprocess
import sys

import loopback_only
import pytest

ELSEWHERE = ("192.0.2.1", 80)  # a documentation address (RFC 5737): routed nowhere


def test_no_connection_leaves_this_machine() -> None:
    with socket.socket() as client, pytest.raises(loopback_only.NetworkBlocked, match=r"192\.0\.2\.1"):
        client.connect(ELSEWHERE)
    with pytest.raises(loopback_only.NetworkBlocked, match=r"example\.org"):
        socket.create_connection(("example.org", 443))
    assert loopback_only.attempts == ["192.0.2.1", "example.org"]
    loopback_only.attempts.clear()


def test_this_machine_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_a_subprocess_is_guarded_too() -> None:
    code = f"import socket; socket.create_connection({ELSEWHERE})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "NetworkBlocked" in done.stderr
