"""`resources.pod`: what a spec may say of its pods. Anything that is not named here is not a job's to decide."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from worker.contract.names import DnsLabel, DnsSubdomain, LabelKey, LabelValue, dns_subdomain, label_key
from worker.contract.placement import Affinity, OfKubernetes, Toleration
from worker.contract.values import Quantity

_MOST = 32
_SECRET_KEY = re.compile(r"[A-Za-z0-9._-]{1,253}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Where the attempt's own files lie, and what its programs are: the image's, and no volume's.
TAKEN_PATHS = ("/tmp", "/etc/rlhf", "/dev/shm")
_SYSTEM_PATHS = (
    "/app", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/opt", "/proc", "/root", "/run", "/sbin",
    "/sys", "/usr", "/var",
)  # fmt: skip
# What the worker, its launcher, Kubernetes or torch's rendezvous sets: another value would be lost, or do harm.
_SET = frozenset({
    "RANK", "WORLD_SIZE", "GROUP_RANK", "JOB_COMPLETION_INDEX", "HOSTNAME", "DS_ACCELERATOR", "OMP_NUM_THREADS",
    "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HOME", "TMPDIR", "USER", "LOGNAME",
})  # fmt: skip
_SET_PREFIXES = (
    "RLHF_", "WORKER_", "KUBERNETES_", "MASTER_", "LOCAL_", "TORCHELASTIC_", "GROUP_WORLD_", "ROLE_", "NVIDIA_",
    "MALLOC_",
)  # fmt: skip
# What decides which programs run.
_CODE = frozenset({
    "PATH", "CC", "CXX", "CUDA_HOME", "BASH_ENV", "ENV", "GCONV_PATH", "TORCH_EXTENSIONS_DIR",
    "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
})  # fmt: skip
_CODE_PREFIXES = ("PYTHON", "LD_", "GLIBC_")
# Annotations that say how a container is confined, or that belong to whoever writes the Job.
_OWNED_ANNOTATIONS = (
    "rlhf-operator", "batch.kubernetes.io", "container.apparmor.security.beta.kubernetes.io",
    "container.seccomp.security.alpha.kubernetes.io", "seccomp.security.alpha.kubernetes.io", "kubernetes.io",
)  # fmt: skip
# Kubernetes' other volumes, as people write them: the node's own files, other people's secrets, drivers.
_OTHER_KINDS = frozenset({
    "host_path", "hostPath", "secret", "config_map", "configMap", "projected", "downward_api", "downwardAPI", "nfs",
    "csi", "ephemeral", "image", "iscsi", "fc", "persistent_volume_claim", "persistentVolumeClaim", "emptyDir",
})  # fmt: skip
_MOST_ANNOTATION_BYTES = 64 * 1024


def _env_name(value: str) -> str:
    if not _ENV_NAME.fullmatch(value):
        raise ValueError("the name of a variable has letters, digits and underscores, and begins with no digit")
    if value in _CODE or value.startswith(_CODE_PREFIXES):
        raise ValueError("decides which programs run, which is the image's to say; leave it out")
    if value in _SET or value.startswith(_SET_PREFIXES):
        raise ValueError("is set for each rank by the worker or the cluster; leave it out")
    return value


def _env_value(value: str) -> str:
    if "\x00" in value:
        raise ValueError("a variable has no NUL in it")
    return value


def _annotation_key(value: str) -> str:
    label_key(value.lower())  # their upper case is legal, in the prefix too
    prefix = value.lower().rpartition("/")[0]
    if prefix in _OWNED_ANNOTATIONS:
        raise ValueError(f"annotations of {prefix} are not a spec's to set; leave it out")
    return value


def _sized(value: dict[str, str]) -> dict[str, str]:
    if sum(len(key.encode()) + len(text.encode()) for key, text in value.items()) > _MOST_ANNOTATION_BYTES:
        raise ValueError("annotations have at most 64 KiB in all")
    return value


def _priority_class(value: str) -> str:
    if value.startswith("system-"):
        raise ValueError("classes that begin with `system-` are for the cluster's own pods; name another")
    return value


def _secret_key(value: str) -> str:
    secret, slash, key = value.partition("/")
    if not slash or not _SECRET_KEY.fullmatch(key):
        raise ValueError("write SECRET/KEY, such as hub/token")
    dns_subdomain(secret)
    return value


SecretKey = Annotated[str, AfterValidator(_secret_key)]


def overlap(one: str, other: str) -> bool:
    """Whether two paths are the same, or one lies in the other."""
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def _mount_path(value: str) -> str:
    if not value.startswith("/") or ":" in value or "\x00" in value or ".." in value.split("/"):
        raise ValueError("write a path that starts with `/`, without `:` and without `..`")
    if value != str(PurePosixPath(value)) or value.startswith("//"):
        raise ValueError(f"write the path as {'/' + str(PurePosixPath(value)).lstrip('/')}")
    for taken in TAKEN_PATHS:
        if overlap(value, taken):
            raise ValueError(f"{taken} is the worker's own; mount it elsewhere, such as at /mnt/data")
    if value == "/" or any(PurePosixPath(value).is_relative_to(path) for path in _SYSTEM_PATHS):
        raise ValueError("the image's programs lie there; mount it elsewhere, such as at /mnt/data")
    return value


class EmptyDir(OfKubernetes):
    """A folder of the pod's own, that goes with it."""

    medium: Literal["Memory"] | None = Field(default=None, description="`Memory`: counted in `resources.memory`")
    size_limit: Quantity | None = Field(default=None, description="a pod that writes more is evicted")


class PodVolume(OfKubernetes):
    """A volume in every pod of the job. Give `claim` or `empty_dir`."""

    name: DnsLabel
    mount_path: Annotated[str, AfterValidator(_mount_path), Field(max_length=512)] = Field(
        description="such as `/mnt/data`; not where the worker's own files or the image's programs lie",
        examples=["/mnt/data"],
    )
    claim: DnsSubdomain | None = Field(default=None, description="a PersistentVolumeClaim of the job's namespace")
    empty_dir: EmptyDir | None = None
    read_only: bool = False

    @model_validator(mode="before")
    @classmethod
    def _known_kind(cls, data: Any) -> Any:
        # Before the fields are looked at: the nearest name of a field is no answer to who asks for another kind.
        for kind in sorted(_OTHER_KINDS.intersection(data) if isinstance(data, dict) else ()):
            raise ValueError(
                f"`{kind}` is no kind of volume that a spec may name; write `claim`, for a PersistentVolumeClaim, "
                "or `empty_dir`"
            )
        return data

    @model_validator(mode="after")
    def _one_kind(self) -> "PodVolume":
        if (self.claim is None) == (self.empty_dir is None):
            raise ValueError("give one of `claim` and `empty_dir`: those are the kinds of volumes that a spec may name")
        if self.empty_dir is not None and self.read_only:
            raise ValueError("nobody could write to a read-only `empty_dir`; leave `read_only` out")
        if self.name.startswith("rlhf-"):
            raise ValueError("names that begin with `rlhf-` are the worker's own; choose another `name`")
        return self


def _apart(volumes: list[PodVolume]) -> list[PodVolume]:
    for number, volume in enumerate(volumes):
        for before in volumes[:number]:
            if volume.name == before.name:
                raise ValueError(f"two volumes are called `{volume.name}`; give each its own name")
            if overlap(volume.mount_path, before.mount_path):
                raise ValueError(f"`{volume.name}` and `{before.name}` are mounted at or in one another; part them")
    return volumes


class Pod(OfKubernetes):
    """What is added to the job's pods on Kubernetes. All else of them is the cluster's to decide."""

    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=_MOST)] = Field(
        default={}, description="labels that a node must have"
    )
    tolerations: Annotated[list[Toleration], Field(max_length=_MOST)] = []
    affinity: Affinity | None = None
    priority_class: Annotated[DnsSubdomain, AfterValidator(_priority_class)] | None = Field(
        default=None, description="a PriorityClass of the cluster: who gives way to whom on a full node"
    )
    annotations: Annotated[
        dict[Annotated[str, AfterValidator(_annotation_key)], str], Field(max_length=_MOST), AfterValidator(_sized)
    ] = {}
    volumes: Annotated[list[PodVolume], Field(max_length=_MOST), AfterValidator(_apart)] = []
    env: Annotated[
        dict[
            Annotated[str, AfterValidator(_env_name), Field(max_length=256)],
            Annotated[str, AfterValidator(_env_value), Field(max_length=8192)],
        ],
        Field(max_length=64),
    ] = Field(
        default={},
        description="variables of the worker, but for those that it or the cluster sets. Plain texts, which everybody "
        "sees who sees the job: no secrets",
    )
    secrets: Annotated[
        dict[Annotated[str, AfterValidator(_env_name), Field(max_length=256)], SecretKey], Field(max_length=16)
    ] = Field(
        default={},
        description="variables whose values are in Secrets of the job's namespace, by name and key: `{HF_TOKEN: "
        "hub/token}`. The Secret bears the label `rlhf-operator/project` with the project's name",
    )

    @model_validator(mode="after")
    def _each_once(self) -> "Pod":
        for name in self.secrets:
            if name in self.env:
                raise ValueError(f"`{name}` is in `env` and in `secrets`; leave it out of one of them")
        return self
