"""Parameters that several routes take, and how store's refusals are answered."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Header, Path, Query

from api.errors import Refusal, invalid, not_found
from api.store import files, keys, models, pipelines, projects
from api.store.idempotency import KeyReused
from api.store.jobs import Conflict, InputGone, NoSuchJob, Stale
from api.store.pages import BadCursor
from worker.contract.problem import Problem

# No NUL, which PostgreSQL does not take, and nothing that a log could be forged with.
TEXT = r"^[^\x00-\x1f\x7f]*$"
_TAG = re.compile(r'(?:W/)?"(\d{1,18})(?:\.[0-9a-f]*)?"')

JobId = Annotated[str, Path(max_length=64, pattern=TEXT, examples=["job-k3v7qd2mzxna"])]
Limit = Annotated[int, Query(ge=1, le=1000, description="entries a page")]
After = Annotated[str | None, Query(max_length=128, pattern=TEXT, description="`next` of the page before")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="sent twice with the same body within 24 h, it makes one thing (201, then 200)",
    ),
]
IfMatch = Annotated[
    str | None, Header(max_length=256, description="an ETag: the change is made only if the job is still as it says")
]
Tag = Annotated[str | None, Header(alias="If-None-Match", max_length=1024)]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", max_length=4096, description="goes on after this event")
]


def generation(if_match: str | None) -> int | None:
    """The generation that an If-Match asks for; None: any. Raises Refusal 412."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = _TAG.fullmatch(if_match.strip())
    if found is None:
        raise Refusal(412, 'write If-Match as the ETag that the job was read with, such as "3"')
    return int(found[1])


@contextmanager
def refusing() -> Iterator[None]:
    """The store's refusals, as answers."""
    try:
        yield
    except NoSuchJob as error:
        raise not_found("job", str(error)) from None
    except pipelines.NoSuchPipeline as error:
        raise not_found("pipeline", str(error)) from None
    except files.NoSuchFile as error:
        raise not_found("file", str(error)) from None
    except models.NoSuchModel as error:
        raise not_found("model", str(error)) from None
    except projects.NoSuchProject as error:
        raise not_found("project", str(error)) from None
    except keys.NoSuchKey as error:
        raise not_found("API key", str(error)) from None
    except projects.OverQuota as error:
        raise Refusal(403, str(error)) from None
    except Conflict as error:
        raise Refusal(409, str(error)) from None
    except Stale as error:
        raise Refusal(412, str(error)) from None
    except KeyReused as error:
        raise Refusal(422, str(error), [Problem("Idempotency-Key", str(error))]) from None
    except BadCursor as error:
        raise Refusal(422, f"after: {error}", [Problem("after", str(error))]) from None
    except InputGone as error:
        raise invalid([Problem(error.path, "was deleted just now")]) from None
