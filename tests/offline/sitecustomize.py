"""Python runs this at its start: `tests/conftest.py` puts its folder on PYTHONPATH for what the tests start."""

from loopback_only import install

install()
