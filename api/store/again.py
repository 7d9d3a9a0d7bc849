"""Doing a unit of work again that the database undid, though the work was right.

A deadlock, and a serialization failure, roll back the whole transaction; so does a connection that is lost before the
commit. What was lost during a commit may have been stored: that is told (`Trouble.UNCERTAIN`), and may be sent again by
those for whom it changes nothing: a create has its Idempotency-Key, a report its `seq`. Everything else is somebody's
mistake, or lasts, and is not tried again.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.exc import DBAPIError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from api.store.trouble import Trouble, Unavailable, state, words

Result = TypeVar("Result")

_TRIES = 5
# Seconds, times two with each try, of which a random part is waited: of two that met, one should go first.
_FIRST, _LONGEST = 0.02, 0.5
_UNDONE = ("40001", "40P01")
log = logging.getLogger(__name__)


@dataclass
class _Request:
    once: bool = False


_request: ContextVar[_Request | None] = ContextVar("request", default=None)


def undone(error: BaseException) -> bool:
    """Whether nothing of the work is stored, and the same may go well at once."""
    return isinstance(error, DBAPIError) and (state(error) in _UNDONE or error.connection_invalidated)


@contextmanager
def committing() -> Iterator[None]:
    """Around a commit alone: a connection that is lost in it leaves open whether it was done. Raises Unavailable."""
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable(Trouble.UNCERTAIN) from error
        raise


def only_once() -> None:
    """The request under way has done something that must not be done twice: from here on it is not repeated."""
    if (request := _request.get()) is not None:
        request.once = True


async def repeated(work: Callable[[], Awaitable[Result]]) -> Result:
    """What one transaction gives, which does nothing but ask and tell the database."""
    try:
        return await _retrying(undone)(work)
    except DBAPIError as error:
        if undone(error):
            # Enough was tried: the request that it is a part of need not try as often again.
            only_once()
        raise


async def request(handle: Callable[[], Awaitable[Result]]) -> Result:
    """What a whole request gives, which may be done again until one of its transactions is committed."""
    this = _Request()
    token = _request.set(this)
    try:
        return await _retrying(lambda error: undone(error) and not this.once)(handle)
    finally:
        _request.reset(token)


def _retrying(worth: Callable[[BaseException], bool]) -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception(worth),
        stop=stop_after_attempt(_TRIES),
        wait=wait_random_exponential(multiplier=_FIRST, max=_LONGEST),
        before_sleep=_tell,
        reraise=True,
    )


def _tell(call: RetryCallState) -> None:
    error = call.outcome.exception() if call.outcome is not None else None
    log.info("the database undid a transaction, which is done again: %s", words(error) if error is not None else "")
