"""Python runs this at its start: `tests/conftest.py` puts its folder on PYTHONPATH for subprocesses."""

from loopback_only import install

install()
