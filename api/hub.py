"""Models by their hub name: the hub is asked shortly, the local cache stands in."""

import asyncio
import logging
from pathlib import Path
from typing import Any

from api.weights import Known, NotAModel, read_config, told_by

log = logging.getLogger(__name__)


class NotFound(ValueError):
    """Neither the hub nor the cache has the model."""


async def find(name: str, timeout: float) -> Known:
    """What a hub name means now: asks the hub for at most about `timeout` seconds, then the cache. Raises NotFound.

    The hash is the revision.
    """
    try:
        async with asyncio.timeout(timeout + 1):
            return await asyncio.to_thread(_ask, name, timeout)
    except TimeoutError:
        return await asyncio.to_thread(_cached, name, "the hub did not answer in time")


def _ask(name: str, timeout: float) -> Known:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise NotFound(
            "is no reference: write models/NAME, a path that starts with `/` or `./`, or a hub name such as org/name"
        ) from None
    if constants.HF_HUB_OFFLINE:
        return _cached(name, "the hub is not asked (HF_HUB_OFFLINE)")
    try:
        # Without a token that lies about here: workers are given none, and could not load what only it shows.
        info = HfApi().model_info(name, timeout=timeout, token=False)
    except RepositoryNotFoundError:
        return _cached(name, "the hub has no such model, or does not show it")
    except Exception as error:
        # What is raised when nobody answers depends on the HTTP library that this version of the client uses.
        log.info("the hub was asked for %s: %s", name, error)
        return _cached(name, "the hub cannot be reached")
    if info.sha is None:
        raise NotFound("the hub names no revision of it")
    return Known(info.sha, told_by(info.config))


def _cached(name: str, why: str) -> Known:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        config = None
    if not isinstance(config, str):
        raise NotFound(f"{why}, and the local cache does not have it")
    # …/models--org--name/snapshots/<revision>/config.json
    path = Path(config)
    try:
        return Known(path.parent.name, told_by(read_config(path)))
    except NotAModel as error:
        raise NotFound(f"{why}, and in the local cache {error}") from None


def config(name: str, revision: str, timeout: float) -> dict[str, Any]:
    """A model's `config.json` at a revision: the cache's, or the hub's. Raises NotFound."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    try:
        if not isinstance(found, str):
            if constants.HF_HUB_OFFLINE:
                raise NotFound("its config.json is not in the local cache, and the hub is not asked (HF_HUB_OFFLINE)")
            found = hf_hub_download(name, "config.json", revision=revision, etag_timeout=timeout, token=False)
        return read_config(Path(found))
    except NotAModel as error:
        raise NotFound(str(error)) from None
    except NotFound:
        raise
    except Exception as error:
        # What is raised when nobody answers depends on the HTTP library that this version of the client uses.
        log.info("the hub was asked for the configuration of %s: %s", name, error)
        raise NotFound("the hub does not give its config.json") from None
