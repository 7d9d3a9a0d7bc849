"""Where attempts run on Kubernetes: the namespace, the store, and the administrator's part of every worker pod."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.settings import BadSettings
from worker.contract.names import LabelKey, LabelValue

# Of the control plane's variables, those that pods need to find a bucket.
_TOLD = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
# The uid and gid of the worker's image.
WORKER_USER = 10001


class _Part(BaseModel):
    """A part of the administrator's file: Kubernetes' own names, no unknown fields, no coercion."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PullSecret(_Part):
    """A Secret that images are pulled with."""

    name: Annotated[str, Field(min_length=1)]


class EnvVar(_Part):
    """A variable: `value`, or `valueFrom` as Kubernetes has it (a secretKeyRef, a configMapKeyRef, a fieldRef)."""

    name: Annotated[str, Field(min_length=1)]
    value: str | None = None
    valueFrom: dict[str, Any] | None = None


class VolumeMount(_Part):
    """Where one of `volumes` is mounted in the worker's container."""

    name: Annotated[str, Field(min_length=1)]
    mountPath: Annotated[str, Field(pattern="^/")]
    readOnly: bool = False
    subPath: str | None = None


class WorkerPod(_Part):
    """What an administrator decides of all worker pods; all but the image may be left out."""

    image: Annotated[str, Field(min_length=1)]
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    imagePullSecrets: list[PullSecret] = []
    command: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="absent: the image's entrypoint; `--order FILE` is added"
    )
    env: list[EnvVar] = []
    volumes: list[dict[str, Any]] = []
    volumeMounts: list[VolumeMount] = []
    nodeSelector: dict[LabelKey, LabelValue] = {}
    tolerations: list[dict[str, Any]] = []
    runAsUser: Annotated[int, Field(ge=1)] = WORKER_USER
    runAsGroup: Annotated[int, Field(ge=1)] = WORKER_USER
    egress: list[dict[str, Any]] = Field(
        default=[], description="rules of a NetworkPolicy: what workers may call beyond the control plane and DNS"
    )


@dataclass(frozen=True)
class Bucket:
    """What pods need of a store in a bucket."""

    endpoint: str = "https://s3.amazonaws.com"
    """Where they reach it; egress to it is allowed."""
    variables: tuple[tuple[str, str], ...] = ()
    """That lead to it, and are no secret."""
    secret: str = ""
    """The Secret in their namespace with the credentials; none: they have an identity of their own."""
    scratch: str = ""
    """How much of it a pod may have on its node; empty: as much as the node has."""

    @classmethod
    def of(cls, environment: Mapping[str, str], *, secret: str, scratch: str) -> "Bucket":
        """As the control plane's own variables say it."""
        told = tuple((name, environment[name]) for name in _TOLD if environment.get(name))
        named = dict(told)
        endpoint = named.get("AWS_ENDPOINT_URL_S3") or named.get("AWS_ENDPOINT_URL") or cls.endpoint
        return cls(endpoint, told, secret, scratch)


@dataclass(frozen=True)
class Site:
    """One installation's place on a cluster."""

    namespace: str
    """Where the objects of attempts lie; never the control plane's own."""
    installation: str
    """A label's value that tells this control plane's objects from another's."""
    worker_url: str
    """The worker listener, as pods reach it. Of a Service, its port must be that of its pods: network policies look at
    a packet after its address was translated."""
    store_url: str
    """As orders name it: `file://` and `store_path`, or an object store's."""
    store_claim: str | None
    """The PersistentVolumeClaim that the store is on; None: it is no volume."""
    store_path: str
    """Where that claim is mounted in pods; of a bucket, where they have what they work on of it."""
    pod: WorkerPod
    bucket: Bucket | None = None
    """Of a store that is one."""


def load_worker_pod(path: Path) -> WorkerPod:
    """The administrator's part, from a YAML file. Raises BadSettings with a line for each thing that is wrong."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"WORKER_POD: {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise BadSettings(f"WORKER_POD: {path} is no YAML: {error}") from None
    if not isinstance(given, dict):
        raise BadSettings(f"WORKER_POD: {path} must hold an object with at least an `image`")
    try:
        return WorkerPod.model_validate(given)
    except ValidationError as error:
        raise BadSettings("\n".join(_sentence(path, detail["loc"], detail) for detail in error.errors())) from None


def _sentence(path: Path, location: tuple[int | str, ...], detail: Any) -> str:
    where = ".".join(str(part) for part in location)
    if detail["type"] == "extra_forbidden":
        known = ", ".join(WorkerPod.model_fields)
        return f"WORKER_POD: {path}: {where}: unknown field" + (f"; known: {known}" if len(location) == 1 else "")
    said = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    said = "is required" if detail["type"] == "missing" else said
    return f"WORKER_POD: {path}: {where}: {said}"
