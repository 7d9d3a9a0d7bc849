"""Settings of the control plane, from the environment (`DATA`, `DATABASE_URL`, …) and the command line."""

import ipaddress
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from worker.storage.place import Place, is_object_store

MIB = 2**20
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


Namespace = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


class BadSettings(ValueError):
    """Settings that the control plane refuses to start with; each line is a sentence."""


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine alone."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Settings(BaseSettings):
    """All that can be set, with its default. Sizes are bytes, times are seconds."""

    model_config = SettingsConfigDict(env_prefix="", extra="ignore", frozen=True, env_ignore_empty=True)

    data: Path = Field(default=Path("rlhf-data"), description="the folder that holds all that one machine keeps")
    database_url: str = Field(default="", description="absent: SQLite in the data folder; else postgresql://…")
    database_pool: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=15, description="with PostgreSQL: connections that an API process holds; one more wakes the operator"
    )
    operator_pool: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=10, description="with PostgreSQL: connections that an operator holds; one more hears what wakes it"
    )
    statement_timeout: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=15.0, description="with PostgreSQL: for one statement of a request"
    )
    operator_statement_timeout: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=60.0, description="with PostgreSQL: for one statement of the operator"
    )
    lock_timeout: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=5.0, description="with PostgreSQL: for a row or a table that somebody else holds"
    )
    cluster: Literal["local", "kubernetes"] = Field(
        default="local", description="what runs attempts: `local`, processes of this machine; `kubernetes`, Jobs"
    )
    namespace: Namespace = Field(
        default="rlhf",
        description="on Kubernetes: where the attempts' objects are made, of projects without one of their own",
    )
    namespaces: Annotated[list[Namespace], NoDecode] = Field(
        default=[],
        description="on Kubernetes: more of them, joined by blanks, that projects may have for their attempts",
    )
    pod_namespace: str = Field(
        default="", description="on Kubernetes: the control plane's own, in which no attempt may run"
    )
    kubeconfig: Path | None = Field(
        default=None, description="on Kubernetes: absent, the pod's own account, or the home folder's configuration"
    )
    worker_pod: Path | None = Field(
        default=None, description="on Kubernetes: a YAML file with the image of workers, and more of their pods"
    )
    worker_url: str = Field(
        default="",
        description="on Kubernetes: where pods reach the workers' listener, such as http://rlhf-workers:8001",
    )
    store_claim: str = Field(default="", description="on Kubernetes: the claim of the volume that is the store")
    store_mount: str = Field(
        default="", description="on Kubernetes: where pods mount that volume; absent: at the store's path here"
    )
    store_secret: str = Field(
        default="",
        description="on Kubernetes, with a store in a bucket: the Secret in the namespaces of attempts that holds "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; absent: pods have an identity of their own",
        pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$",
    )
    scratch_size: str = Field(
        default="",
        description="on Kubernetes, with a store in a bucket: how much of it a pod may have on its node, such as 200Gi",
        pattern=r"^([0-9.]+(k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?)?$",
    )
    local_jobs: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="jobs that run at once")
    back_off: Annotated[float, Field(gt=0, le=300)] = Field(
        default=10.0, description="before a next attempt; doubles with each one in a row, up to 5 minutes"
    )
    lease: Annotated[float, Field(ge=1, le=60)] = Field(
        default=10.0, description="seconds after which another operator takes the place of one that is gone"
    )
    watch_silence: Annotated[float, Field(ge=1, le=3600)] = Field(
        default=90.0,
        description="on Kubernetes: seconds after which a watch of which nothing was heard, not even a bookmark, is "
        "taken for cut",
    )
    auth: Literal["none", "keys"] = Field(
        default="none",
        description="`keys`: every call needs an API key; `none`: on this machine alone, and all may do all",
    )
    admin_key_file: Path | None = Field(
        default=None, description="with AUTH=keys: a file with an admin's key, taken at each start (`rlhf_` and more)"
    )
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8000, description="0: any free one")
    health_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None, description="of `--role operator`: where HOST answers /livez and /readyz; absent: nowhere"
    )
    worker_host: str = Field(default="127.0.0.1", description="where workers report to; each call needs a token")
    worker_port: Annotated[int, Field(ge=0, le=65535)] = 0
    store: str = Field(
        default="",
        description="file:///folder, or s3://bucket/prefix with the credentials and the endpoint in the AWS_* "
        "variables; absent: file://DATA/store",
    )
    allowed_paths: Annotated[list[Path], NoDecode] = Field(
        default_factory=lambda: [Path.cwd()],
        description=f"folders, joined by {os.pathsep!r}, whose models and data a spec may name by path",
    )
    allowed_services: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="URLs, joined by blanks, under which a spec's reward services lie; this machine's own always may",
    )
    max_body: Annotated[int, Field(ge=1024)] = Field(default=MIB, description="bytes of a JSON body")
    max_file: Annotated[int, Field(ge=1)] = Field(default=512 * MIB, description="bytes of a data file")
    client_timeout: Annotated[float, Field(ge=0.1, le=600)] = Field(
        default=20.0,
        description="for a client to send a request's head, and to send or to read some of a body; the slower are cut "
        "off",
    )
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=4096,
        description="of each listener; more are answered with 503. Fewer, where there are not enough file descriptors",
    )
    hub_timeout: Annotated[float, Field(gt=0, le=60)] = Field(default=5.0, description="for one question to the hub")
    shutdown_grace: Annotated[float, Field(gt=0, le=60)] = Field(
        default=5.0, description="for requests under way, when asked to stop"
    )

    @field_validator("allowed_paths", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("namespaces", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return value.split() if isinstance(value, str) else value

    @field_validator("allowed_services", mode="before")
    @classmethod
    def _services(cls, value: Any) -> Any:
        found = value.split() if isinstance(value, str) else value
        for url in found if isinstance(found, list) else []:
            parts = urlsplit(str(url))
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError(
                    f"{url} is not the beginning of a service's URL; write such as https://rewards.example/v1"
                )
        return found

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str) -> str:
        if is_object_store(value):
            return Place.of(value).url
        parts = urlsplit(value)
        if value and (parts.scheme != "file" or parts.netloc or not parts.path.startswith("/")):
            # What it was may hold a secret.
            raise ValueError("is not a store that is known; write file:///folder, or s3://bucket/prefix")
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        for scheme in ("postgresql+asyncpg://", "postgresql://", "postgres://"):
            if value.startswith(scheme):
                value = "postgresql+asyncpg://" + value.removeprefix(scheme)
                break
        try:
            make_url(value or "sqlite://")
        except (ArgumentError, ValueError):
            raise ValueError("is no URL; write such as postgresql://name:password@host:5432/database") from None
        if value.startswith("postgresql+asyncpg://"):
            return value
        if value and not value.startswith("sqlite+aiosqlite:///"):
            raise ValueError("write a URL that starts with postgresql://, or leave it out for SQLite")
        return value

    @model_validator(mode="after")
    def _absolute(self) -> "Settings":
        # Workers run in other folders: all that they are handed is absolute.
        object.__setattr__(self, "data", self.data.expanduser().absolute())
        object.__setattr__(self, "allowed_paths", [p.expanduser().absolute() for p in self.allowed_paths])
        return self

    @model_validator(mode="after")
    def _closed(self) -> "Settings":
        if self.auth == "none" and not is_loopback(self.host):
            raise ValueError(
                f"HOST: {self.host} can be reached from other machines, and without AUTH=keys whoever reaches it may "
                "do all: set AUTH=keys, and make the first key by `python -m api create-key --admin`; or write "
                "127.0.0.1"
            )
        if self.auth == "none" and self.admin_key_file is not None:
            raise ValueError("ADMIN_KEY_FILE: there are keys only with AUTH=keys")
        return self

    @model_validator(mode="after")
    def _whole_cluster(self) -> "Settings":
        if self.cluster == "kubernetes":
            needed = {"WORKER_POD": self.worker_pod, "WORKER_URL": self.worker_url}
            if not self.in_bucket:
                needed["STORE_CLAIM"] = self.store_claim
            if missing := [name for name, value in needed.items() if not value]:
                raise ValueError(f"CLUSTER=kubernetes needs {', '.join(missing)}, too")
            parts = urlsplit(self.worker_url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"WORKER_URL: {self.worker_url} is no URL; write such as http://rlhf-workers:8001")
            if self.pod_namespace in self.for_attempts:
                # Whoever may make pods beside the control plane's Secrets can read them all.
                raise ValueError(
                    f"NAMESPACE, NAMESPACES: {self.pod_namespace} is the control plane's own: attempts run in others"
                )
        elif self.namespaces:
            raise ValueError("NAMESPACES: there are none without CLUSTER=kubernetes")
        return self

    @model_validator(mode="after")
    def _one_store(self) -> "Settings":
        of_a_volume = {"STORE_CLAIM": self.store_claim, "STORE_MOUNT": self.store_mount}
        of_a_bucket = {"STORE_SECRET": self.store_secret, "SCRATCH_SIZE": self.scratch_size}
        if self.in_bucket and (given := [name for name, value in of_a_volume.items() if value]):
            raise ValueError(f"{', '.join(given)}: a store in a bucket is no volume; leave it out")
        if not self.in_bucket and (given := [name for name, value in of_a_bucket.items() if value]):
            raise ValueError(f"{', '.join(given)}: is for STORE=s3://…; leave it out")
        return self

    @property
    def in_bucket(self) -> bool:
        """Whether the store is a bucket, and no folder."""
        return is_object_store(self.store)

    @property
    def for_attempts(self) -> tuple[str, ...]:
        """The namespaces that attempts may run in, on Kubernetes: the first is that of projects without their own."""
        return (self.namespace, *(name for name in self.namespaces if name != self.namespace))

    @property
    def sqlite(self) -> bool:
        """Whether the database is a file in the data folder."""
        return not self.database_url.startswith("postgresql")

    @property
    def database(self) -> URL:
        """The database's URL, as SQLAlchemy takes it."""
        if self.database_url:
            return make_url(self.database_url)
        # Not put together as text: a folder's name may hold what means something in a URL.
        return URL.create("sqlite+aiosqlite", database=str(self.data / "rlhf.db"))

    @cached_property
    def store_path(self) -> Path:
        """The store's folder. There is none where it is a bucket."""
        if self.in_bucket:
            raise ValueError(f"{self.store} is no folder")
        return Path(unquote(urlsplit(self.store).path)) if self.store else self.data / "store"

    @property
    def store_url(self) -> str:
        """The store's URL, as orders name it."""
        return self.store or self.store_path.as_uri()

    @property
    def worker_url_file(self) -> Path:
        """The file that tells workers where to report to."""
        return self.data / "worker-url"


def load(**given: Any) -> Settings:
    """Settings from the environment, with `given` (None: not given) over them. Raises BadSettings."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = []
        for detail in error.errors():
            # What is wrong with several together names them itself.
            where = ".".join(str(part) for part in detail["loc"]).upper()
            said = detail["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {said}" if where else said)
        raise BadSettings("\n".join(lines)) from None
