"""The pods of an attempt: the administrator's part, the spec's, and what every worker needs. Nothing here does I/O."""

import math
from typing import Any

from api.operator.site import Site
from worker.contract.accelerators import deepspeed_accelerator
from worker.contract.pod import Pod, PodVolume, overlap
from worker.contract.problem import Problem
from worker.contract.spec import JobSpec, Resources

MOUNT = "/etc/rlhf"
"""Where the attempt's Secret is mounted: `order.json`, `token` and `control-url`."""
TERMINATION_FILE = "/dev/termination-log"
CONTAINER = "worker"
LAUNCHER_PORT, RANKS_PORT = 29400, 29500
"""Of the first pod: where launchers meet, and where ranks do."""
# Asked for where the spec does not say: enough for a rank to begin, and no promise that it is enough to train.
_CPU_A_RANK, _MEMORY_A_RANK = 500, 1024  # thousandths of a core, MiB
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_ORDER, _TMP, _SHM, _STORE = "rlhf-order", "rlhf-tmp", "rlhf-shm", "rlhf-store"


def pod_spec(name: str, spec: JobSpec, site: Site, image: str) -> dict[str, Any]:
    """The `spec` of the pods of the attempt `name`, under the restricted Pod Security Standard."""
    wanted, admin = spec.resources.pod or Pod(), site.pod
    made: dict[str, Any] = {
        "restartPolicy": "Never",
        # With the headless Service of this name each pod has a name to be found by: NAME-INDEX.NAME.
        "subdomain": name,
        "terminationGracePeriodSeconds": max(1, math.ceil(spec.checkpoint.grace)),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": admin.runAsUser,
            "runAsGroup": admin.runAsGroup,
            "fsGroup": admin.runAsGroup,
            # Not file by file through a store of terabytes, at each start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, site, image)],
        "volumes": _volumes(name, wanted, site),
    }
    if admin.imagePullSecrets:
        made["imagePullSecrets"] = [secret.model_dump() for secret in admin.imagePullSecrets]
    # What the administrator confines, a spec does not open: see `collisions`.
    if selector := wanted.node_selector | admin.nodeSelector:
        made["nodeSelector"] = selector
    if tolerations := [*admin.tolerations, *(t.model_dump(**_AS_KUBERNETES) for t in wanted.tolerations)]:
        made["tolerations"] = tolerations
    if wanted.affinity is not None:
        made["affinity"] = wanted.affinity.model_dump(**_AS_KUBERNETES)
    if wanted.priority_class is not None:
        made["priorityClassName"] = wanted.priority_class
    return made


_AS_KUBERNETES: dict[str, Any] = {"by_alias": True, "exclude_none": True}


def collisions(spec: JobSpec, site: Site) -> list[Problem]:
    """Where `resources.pod` is at odds with the administrator's part, each with its path in the spec."""
    wanted, found = spec.resources.pod, []
    if wanted is None:
        return []
    mounted = {mount.mountPath: "the cluster's administrator" for mount in site.pod.volumeMounts}
    if site.store_claim is not None or site.bucket is not None:
        mounted[site.store_path] = "the store"
    for number, volume in enumerate(wanted.volumes):
        for path, whose in mounted.items():
            if overlap(volume.mount_path, path):
                said = f"{path} is taken, by {whose}; mount it elsewhere, such as at /mnt/{volume.name}"
                found.append(Problem(f"resources.pod.volumes.{number}.mount_path", said))
        if any(volume.name == other.get("name") for other in site.pod.volumes):
            said = f"`{volume.name}` is the name of a volume of the cluster's administrator; choose another"
            found.append(Problem(f"resources.pod.volumes.{number}.name", said))
    if site.bucket is not None:
        for name in sorted(wanted.env.keys() | wanted.secrets.keys()):
            if name.startswith("AWS_"):
                where = "env" if name in wanted.env else "secrets"
                said = "the store here is a bucket, and the AWS_* variables lead to it; leave it out"
                found.append(Problem(f"resources.pod.{where}.{name}", said))
    for key, value in wanted.node_selector.items():
        fixed = site.pod.nodeSelector.get(key, value)
        if fixed != value:
            said = f"the cluster's administrator has fixed this label to `{fixed}`; leave it out"
            found.append(Problem(f"resources.pod.node_selector.{key}", said))
    return found


def _container(spec: JobSpec, site: Site, image: str) -> dict[str, Any]:
    admin = site.pod
    made: dict[str, Any] = {
        "name": CONTAINER,
        "image": image,
        "args": ["--order", f"{MOUNT}/order.json"],
        "env": _environment(spec, site),
        "resources": _resources(spec.resources),
        "ports": [
            {"name": "launcher", "containerPort": LAUNCHER_PORT, "protocol": "TCP"},
            {"name": "ranks", "containerPort": RANKS_PORT, "protocol": "TCP"},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": TERMINATION_FILE,
        # A launcher that could not even write its message has said why in its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(spec.resources.pod or Pod(), site),
    }
    if admin.imagePullPolicy is not None:
        made["imagePullPolicy"] = admin.imagePullPolicy
    if admin.command is not None:
        made["command"] = list(admin.command)
    return made


def _environment(spec: JobSpec, site: Site) -> list[dict[str, Any]]:
    """The administrator's variables, the spec's over them, ours over both; each name once."""
    # The root file system is read-only and the user has no entry in the image's passwd file: what Python and torch
    # would look up there. An administrator may say otherwise.
    found: dict[str, dict[str, Any]] = {
        name: {"name": name, "value": value} for name, value in (("HOME", "/tmp"), ("TMPDIR", "/tmp"), ("USER", "rlhf"))
    }
    found |= {given.name: given.model_dump(exclude_none=True) for given in site.pod.env}
    wanted = spec.resources.pod.env if spec.resources.pod is not None else {}
    # Kubernetes would put other variables' values in the place of `$(NAME)`: a spec's texts are taken as they are.
    found |= {name: {"name": name, "value": value.replace("$", "$$")} for name, value in wanted.items()}
    for name, (secret, key) in secrets(spec).items():
        found[name] = {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
    found |= _of_bucket(site)
    accelerator = deepspeed_accelerator(spec.resources.accelerator)
    if accelerator is not None:  # without one, the launcher tells its ranks so
        found["DS_ACCELERATOR"] = {"name": "DS_ACCELERATOR", "value": accelerator}
    return list(found.values())


def _of_bucket(site: Site) -> dict[str, dict[str, Any]]:
    """The variables that lead to a store in a bucket, by their names."""
    if site.bucket is None:
        return {}
    found: dict[str, dict[str, Any]] = {
        name: {"name": name, "value": value.replace("$", "$$")} for name, value in site.bucket.variables
    }
    if site.bucket.secret:
        for name in _CREDENTIALS:
            key: dict[str, Any] = {"name": site.bucket.secret, "key": name}
            # Of credentials that last there is none.
            key |= {"optional": True} if name == "AWS_SESSION_TOKEN" else {}
            found[name] = {"name": name, "valueFrom": {"secretKeyRef": key}}
    return found


def secrets(spec: JobSpec) -> dict[str, tuple[str, str]]:
    """The variables that come from Secrets: the Secret's name and the key in it, by the variable's."""
    wanted = spec.resources.pod.secrets if spec.resources.pod is not None else {}
    return {name: (where.partition("/")[0], where.partition("/")[2]) for name, where in wanted.items()}


def _resources(resources: Resources) -> dict[str, Any]:
    """What a pod asks for, and what it is held to.

    Memory and accelerators: both the same, so that nobody is evicted for memory that was promised to him. Cores are
    asked for, never limited: a rank that has used up its share of a period would stand still to the period's end, and
    all ranks wait for the slowest. Ranks start no more threads than `resources.cpu` allows them anyway.
    """
    requests: dict[str, str] = {
        "cpu": resources.cpu or f"{_CPU_A_RANK * resources.per_node}m",
        "memory": resources.memory or f"{_MEMORY_A_RANK * resources.per_node}Mi",
    }
    limits: dict[str, str] = {"memory": resources.memory} if resources.memory is not None else {}
    if resources.accelerator != "none":
        requests[resources.accelerator] = limits[resources.accelerator] = str(resources.per_node)
    return {"requests": requests, "limits": limits} if limits else {"requests": requests}


def _volumes(name: str, wanted: Pod, site: Site) -> list[dict[str, Any]]:
    ours: list[dict[str, Any]] = [
        # Read by the group, which is the volume's own (fsGroup): the worker is not root.
        {"name": _ORDER, "secret": {"secretName": name, "defaultMode": 0o440}},
        {"name": _TMP, "emptyDir": {}},
        # For gloo and NCCL: a container has 64 MiB of it. What is in it counts as the pod's memory, whose limit bounds
        # it; a limit of its own would have the pod evicted instead.
        {"name": _SHM, "emptyDir": {"medium": "Memory"}},
    ]
    if site.store_claim is not None:
        ours.append({"name": _STORE, "persistentVolumeClaim": {"claimName": site.store_claim}})
    elif site.bucket is not None:
        limit = {"sizeLimit": site.bucket.scratch} if site.bucket.scratch else {}
        ours.append({"name": _STORE, "emptyDir": limit})
    return [*ours, *site.pod.volumes, *(_volume(volume) for volume in wanted.volumes)]


def _volume(volume: PodVolume) -> dict[str, Any]:
    if volume.claim is not None:
        claim: dict[str, Any] = {"claimName": volume.claim}
        return {"name": volume.name, "persistentVolumeClaim": claim | ({"readOnly": True} if volume.read_only else {})}
    assert volume.empty_dir is not None
    return {"name": volume.name, "emptyDir": volume.empty_dir.model_dump(**_AS_KUBERNETES)}


def _mounts(wanted: Pod, site: Site) -> list[dict[str, Any]]:
    ours: list[dict[str, Any]] = [
        {"name": _ORDER, "mountPath": MOUNT, "readOnly": True},
        {"name": _TMP, "mountPath": "/tmp"},
        {"name": _SHM, "mountPath": "/dev/shm"},
    ]
    if site.store_claim is not None or site.bucket is not None:
        ours.append({"name": _STORE, "mountPath": site.store_path})
    admin = [mount.model_dump(exclude_none=True, exclude_defaults=True) for mount in site.pod.volumeMounts]
    return [*ours, *admin, *(_mount(volume) for volume in wanted.volumes)]


def _mount(volume: PodVolume) -> dict[str, Any]:
    made: dict[str, Any] = {"name": volume.name, "mountPath": volume.mount_path}
    return made | ({"readOnly": True} if volume.read_only else {})
