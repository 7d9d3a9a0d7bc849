"""The ranks of the engine's tests, once more: `one` and `two`."""

from tests.engine.conftest import _environment, one, two

__all__ = ["_environment", "one", "two"]
