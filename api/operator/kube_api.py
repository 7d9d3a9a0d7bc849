"""Calls to the Kubernetes API: plain JSON both ways, and errors that say what can be done about them.

Objects stay dicts: to make the client's models of 1,000 pods takes a second, to read their JSON a sixth of that.
"""

import json
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config.config_exception import ConfigException

from api.operator.cluster import ClusterError, fence
from worker.contract.protocol import storable

Json = dict[str, Any]
# A call that nobody answers for so long is given up, in seconds; the operator's lease may end it sooner.
TIMEOUT = 20.0
_CONNECT = 5.0
# One line of a watch: an object is at most 1.5 MiB in etcd, and grows a little by its JSON.
_LONGEST_LINE = 4 * 2**20

log = logging.getLogger(__name__)


class ApiError(ClusterError):
    """An answer that is no success; `status` is HTTP's, `reason` and `message` are the API server's own words. Without
    a reason it was somebody else who answered: a proxy, with a page."""

    def __init__(self, status: int, reason: str, message: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message, self.causes = status, reason, message, causes


class Gone(ClusterError):
    """A watch cannot go on from where it was (410): list again."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object, by the path of its collection."""

    group: str
    """Such as `api/v1` or `apis/batch/v1`."""
    plural: str


_JSON = "application/json"
# https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

JOBS = Resource("apis/batch/v1", "jobs")
PODS = Resource("api/v1", "pods")
SERVICES = Resource("api/v1", "services")
SECRETS = Resource("api/v1", "secrets")
EVENTS = Resource("api/v1", "events")
NETWORK_POLICIES = Resource("apis/networking.k8s.io/v1", "networkpolicies")
WORKLOADS = Resource("apis/kueue.x-k8s.io/v1beta1", "workloads")


class KubeApi:
    """One namespace of one cluster. Every call may raise ClusterError."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    async def get(self, kind: Resource, name: str) -> Json | None:
        """The object; None: there is none of this name."""
        try:
            return await self._call("GET", kind, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def get_metadata(self, kind: Resource, name: str) -> Json | None:
        """What is said of the object, and nothing of what is in it; None: there is none of this name."""
        try:
            return await self._call("GET", kind, name, accept=_METADATA)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, kind: Resource, query: Mapping[str, str]) -> Json:
        """The collection as it is now (a quorum read): `items`, and the `resourceVersion` to watch on from."""
        return await self._call("GET", kind, query=query)

    async def create(self, kind: Resource, body: Json) -> Json:
        """Creates an object, and gives it as it is stored."""
        return await self._call("POST", kind, body=body)

    async def delete(self, kind: Resource, name: str, options: Json) -> None:
        """Asks for an object's removal. Nothing happens where it is gone, or is another than the preconditions name."""
        try:
            await self._call("DELETE", kind, name, body={"kind": "DeleteOptions", "apiVersion": "v1", **options})
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def watch(
        self, kind: Resource, query: Mapping[str, str], silence: float, opened: Callable[[], None]
    ) -> AsyncIterator[Json]:
        """The changes after `query`'s resourceVersion, bookmarks too. Ends when the server ends it.

        `opened` is called once the server tells of changes from now on, also while there are none.
        Raises Gone, and ClusterError where nothing comes for `silence` seconds: a server sends a bookmark a minute.
        """
        asked = {**query, "watch": "true", "allowWatchBookmarks": "true"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=silence)
        try:
            async with (
                self._answer("GET", kind, query=asked, timeout=timeout) as answer,
                aclosing(_lines(answer)) as lines,
            ):
                opened()
                async for line in lines:
                    event: Json = json.loads(line)
                    if event.get("type") == "ERROR":
                        said = event.get("object", {})
                        raise ApiError(int(said.get("code", 500)), str(said.get("reason")), str(said.get("message")))
                    yield event
        except ApiError as error:
            # In the stream or in its place.
            if error.status == 410:
                raise Gone(error.message) from error
            raise

    async def _call(
        self,
        method: str,
        kind: Resource,
        name: str = "",
        *,
        body: Json | None = None,
        query: Mapping[str, str] = {},
        accept: str = _JSON,
    ) -> Json:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT, sock_connect=_CONNECT)
        try:
            answering = self._answer(method, kind, name, body=body, query=query, timeout=timeout, accept=accept)
            async with answering as answer:
                found: Json = json.loads(await answer.read())
                return found
        except ValueError as error:
            raise ClusterError(f"{method} {kind.plural} {name}: the answer is no JSON: {error}") from error

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        kind: Resource,
        name: str = "",
        *,
        timeout: aiohttp.ClientTimeout,
        body: Json | None = None,
        query: Mapping[str, str] = {},
        accept: str = _JSON,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        path = f"/{kind.group}/namespaces/{self.namespace}/{kind.plural}" + (f"/{name}" if name else "")
        try:
            prepared = await self._client.param_serialize(
                method, path, query_params=list(query.items()), header_params={"Accept": accept},
                body=body, auth_settings=["BearerToken"],
            )  # fmt: skip
            if method != "GET":
                # Who answers later than the lease runs would be too late.
                timeout = aiohttp.ClientTimeout(total=min(TIMEOUT, fence.get(lambda: TIMEOUT)()), sock_connect=_CONNECT)
            answer = (await self._client.call_api(*prepared, _request_timeout=timeout)).response
        except (aiohttp.ClientError, TimeoutError, OSError, ConfigException) as error:
            raise ClusterError(f"{method} {kind.plural} {name}: {type(error).__name__}: {error}") from error
        try:
            if answer.status >= 400:
                raise _refusal(answer.status, await answer.read())
            yield answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(f"{method} {kind.plural} {name}: {type(error).__name__}: {error}") from error
        finally:
            # A watch, or an answer that was not read to its end, cannot be used again.
            answer.release() if answer.content.at_eof() else answer.close()


def _refusal(status: int, content: bytes) -> ApiError:
    """The API server's Status object, or whatever stands in for it (a proxy's page)."""
    try:
        said = json.loads(content)
        causes = tuple(str(cause.get("reason")) for cause in (said.get("details") or {}).get("causes") or ())
        words = storable(str(said.get("message", "")))
        return ApiError(status, str(said.get("reason", "")) if said.get("kind") == "Status" else "", words, causes)
    except (ValueError, AttributeError):
        return ApiError(status, "", storable(content[:300].decode(errors="replace")))


async def _lines(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Whole lines, of any length that an object may have."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > _LONGEST_LINE:
            raise Gone("a watch sent a line without an end")


class NoCluster(Exception):
    """Why no API server can be asked, in a sentence."""


async def connect(kubeconfig: Path | None) -> ApiClient:
    """A client by the given kubeconfig, by KUBECONFIG or the home folder's, or by the pod's own account. Raises
    NoCluster."""
    settings = Configuration()
    try:
        if kubeconfig is not None:
            await config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
        elif "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=settings)
        else:
            await config.load_kube_config(client_configuration=settings)
    except (ConfigException, OSError) as error:
        raise NoCluster(f"no Kubernetes can be reached: {error}; set KUBECONFIG, or run in a pod") from None
    # Who calls decides what is tried again, and when.
    settings.retries = None
    # No call waits for another's connection: between the fence and the wire there is nothing.
    settings.connection_pool_maxsize = 1000
    return ApiClient(settings)
