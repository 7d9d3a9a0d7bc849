"""The control plane that attempts report to, once more: `listener`."""

from tests.process.conftest import listener

__all__ = ["listener"]
