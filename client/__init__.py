"""The Python client of the control plane, and the `rlhf` command line on top of it."""

from client.api import Client
from client.problems import ApiError, Problem, Unreachable

__all__ = ["ApiError", "Client", "Problem", "Unreachable"]
