"""Ids: a word for what it is, and 60 random bits in lower-case base 32."""

import secrets
from typing import Literal

# RFC 4648's alphabet, so that an id holds no 0, 1, 8 or 9 to be misread.
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"

Prefix = Literal["job", "pipe", "file", "model", "key", "proj"]
ID_PATTERN = r"-[a-z2-7]{12}$"


def new_id(prefix: Prefix) -> str:
    """A fresh id, such as `job-k3v7qd2mzxna`."""
    return f"{prefix}-" + "".join(secrets.choice(_ALPHABET) for _ in range(12))
