"""Who calls, and what such a caller may do. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a key allows. Each role may do all that the one before it may."""

    VIEWER = "viewer"
    """Reads what its project has."""
    EDITOR = "editor"
    """Makes, changes and deletes it."""
    ADMIN = "admin"
    """Everything in every project; makes projects and keys, and reads who changed what."""

    def allows(self, needed: "Role") -> bool:
        """Whether this role may do what takes `needed`."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request, and in which project it is made.

    Attributes:
        project: the project's id. Of what lies in others, this caller is told that it is not there.
        key: the id of the API key; None: whoever is on this machine, where no keys are asked for.
        name: the key's name.
    """

    project: str
    role: Role
    key: str | None
    name: str
