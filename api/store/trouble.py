"""What troubles a database that nobody's program is to blame for, and how people are told."""

import sqlite3
from enum import StrEnum

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout


class Trouble(StrEnum):
    """Each value is the sentence that a person reads."""

    AWAY = "the database does not answer; try again"
    READ_ONLY = (
        "the database takes no changes at the moment: it is a replica, or was set to be read only; try again once it "
        "takes them"
    )
    FULL = "the database's disk is full; make room on it, then try again"
    SLOW = (
        "the database was at this for longer than it may be, and was stopped; ask for less at a time (a smaller "
        "`limit`, a filter), or try again later"
    )
    LOCKED = "others are changing the same; try again"
    CROWDED = "too many ask the database at this moment; try again"
    UNCERTAIN = (
        "the database was lost while it stored this, and may or may not have done so; look before you send it again, "
        "or send it with the Idempotency-Key that it had"
    )


class Unavailable(SQLAlchemyError):
    """A trouble that the database has not put into words of its own."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.value)
        self.trouble = trouble


# PostgreSQL's states, whole or by their class.
_STATES = {
    "08": Trouble.AWAY,  # connection exception
    "25006": Trouble.READ_ONLY,
    "25P03": Trouble.AWAY,  # idle_in_transaction_session_timeout: this process was frozen
    "40001": Trouble.LOCKED,  # serialization failure
    "40P01": Trouble.LOCKED,  # deadlock
    "53": Trouble.CROWDED,  # connections, memory
    "53100": Trouble.FULL,
    "55P03": Trouble.LOCKED,  # lock_timeout
    "57": Trouble.AWAY,  # shut down, starting up
    "57014": Trouble.SLOW,  # statement_timeout
}
_SQLITE = {sqlite3.SQLITE_FULL: Trouble.FULL, sqlite3.SQLITE_READONLY: Trouble.READ_ONLY}


def state(error: BaseException) -> str:
    """PostgreSQL's five letters for what went wrong; none: it did not say."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")


def trouble(error: BaseException) -> Trouble | None:
    """What troubles the database; None: whoever asked is to blame, or it is no error of a database."""
    if isinstance(error, Unavailable):
        return error.trouble
    if isinstance(error, PoolTimeout):
        return Trouble.CROWDED
    if not isinstance(error, DBAPIError):
        return None
    if known := _STATES.get(state(error)) or _STATES.get(state(error)[:2]):
        return known
    code = getattr(error.orig, "sqlite_errorcode", None)
    # SQLite says more in the upper bytes.
    if isinstance(code, int) and (known := _SQLITE.get(code & 0xFF)):
        return known
    away = error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return Trouble.AWAY if away else None


def words(error: BaseException) -> str:
    """What the database itself said, in one line: without the statement, in which anything may stand."""
    said = str(getattr(error, "orig", None) or error).strip()
    return (said.splitlines() or [type(error).__name__])[0]


def sentence(error: BaseException) -> str:
    """What a person is told of any error of a database."""
    return trouble(error) or words(error)
