"""Reading JSON bodies: bounded, strictly JSON, and with the place of what is wrong."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from api.errors import Refusal, invalid
from worker.contract.problem import Problem

# Deeper than any spec, shallower than any recursion limit.
_MAX_DEPTH = 100
# Seconds to receive what nobody wants.
_PATIENCE = 10.0
# JSON's 1e999 reads as infinite, and its whole numbers have no end.
_LARGEST = 1.7e308


async def read_bytes(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes; kept for a request that is done again. Raises Refusal 413 as soon as it is known
    to be longer."""
    if (kept := getattr(request.state, "body", None)) is not None:
        return bytes(kept)
    too_large = Refusal(413, f"the body is larger than {limit} bytes", headers={"Connection": "close"})
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        await drain(request)
        raise too_large
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                await drain(request)
                raise too_large
            parts.append(part)
    except ClientDisconnect:
        raise Refusal(400, "the body ended too early") from None
    request.state.body = b"".join(parts)
    return bytes(request.state.body)


async def drain(request: Request) -> None:
    """Throws away what is left of a body, for a short while: most clients read no answer before they have sent all,
    and one whose connection is cut meanwhile never sees it."""
    # Who asks first (Expect: 100-continue) has not begun to send.
    if "expect" in request.headers:
        return
    # RuntimeError is Starlette's word that the body was read to its end before.
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        # Shorter than the time after which a client that sends nothing is cut off: it is to be told why.
        async with asyncio.timeout(min(_PATIENCE, request.app.state.control.settings.client_timeout / 2)):
            async for _ in request.stream():
                pass


async def read_json(request: Request, limit: int) -> tuple[bytes, Any]:
    """The body, and the JSON in it. Raises Refusal 400, 413, 415 or 422."""
    _check_media(request)
    raw = await read_bytes(request, limit)
    return raw, parse(raw)


async def read_json_if_any(request: Request, limit: int) -> tuple[bytes, Any]:
    """Like `read_json`, where the body may be left out: then the JSON is an empty object."""
    raw = await read_bytes(request, limit)
    if not raw.strip():
        return raw, {}
    _check_media(request)
    return raw, parse(raw)


def parse(raw: bytes) -> Any:
    """Strict JSON: no NaN, and only text that every database can hold. Raises Refusal 400 or 422."""
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_once)
    except _Twice as error:
        key = str(error)[:200]
        raise invalid([Problem(key, f"{key!r} is given twice in one object; leave one of them out")]) from None
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8: byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {str(error).partition(';')[0]}") from None
    if problems := list(_unstorable(value, (), 0)):
        raise invalid(problems[:100])
    return value


def _check_media(request: Request) -> None:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        # Also what keeps a web page from posting here without the browser asking first.
        raise Refusal(415, "send JSON, with `Content-Type: application/json`")


def _unstorable(value: Any, path: tuple[str, ...], depth: int) -> Iterator[Problem]:
    where = ".".join(path) or "(the whole)"
    if depth > _MAX_DEPTH:
        yield Problem(where[:200], f"is nested deeper than {_MAX_DEPTH}")
    elif isinstance(value, str):
        if "\x00" in value or not _is_unicode(value):
            yield Problem(where, "holds a NUL or half of a surrogate pair; leave it out")
    elif isinstance(value, dict):
        for key, entry in value.items():
            if "\x00" in key or not _is_unicode(key):
                yield Problem(where, "a field's name holds a NUL or half of a surrogate pair; leave it out")
            else:
                yield from _unstorable(entry, (*path, key), depth + 1)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _unstorable(entry, (*path, str(index)), depth + 1)
    elif isinstance(value, int | float) and abs(value) > _LARGEST:
        yield Problem(where, "is too large a number")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class _Twice(Exception):
    """A name that an object has twice: readers disagree on which of the two values counts."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Twice(name)
            seen.add(name)
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
