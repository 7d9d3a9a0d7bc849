"""The objects of one attempt on Kubernetes, as plain JSON: a function of its order and of where it runs.

Job            an Indexed one, a pod a node                owns the others
Service        headless: the names by which pods meet
NetworkPolicy  whom they may talk to
Secret         the order and the token
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from api.operator.labels import (
    QUEUE,
    QUEUE_PRIORITY,
    SPEC_SHA256,
    Manifest,
    attempt_of,
    fingerprint,
    labels,
    ours,
    own_labels,
    queued,
    selector,
    spec_sha256,
)
from api.operator.network import policy
from api.operator.podspec import CONTAINER, LAUNCHER_PORT, MOUNT, RANKS_PORT, collisions, pod_spec
from api.operator.site import Site
from worker.contract.order import Input, Order
from worker.contract.problem import Problem
from worker.contract.protocol import Exit
from worker.contract.spec import JobSpec

__all__ = [
    "CONTAINER", "MOUNT", "CannotRender", "Manifest", "Objects", "attempt_of", "canonical", "fingerprint", "objects",
    "ours", "owned_by", "preview", "queued", "selector",
]  # fmt: skip

# Kubernetes' bound of a Secret's values, in bytes.
MOST_SECRET_BYTES = 2**20
# An order's places, its URLs and the token, beside its spec and its inputs.
_ROOM = 16 * 1024
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?")
# What the worker says of itself is so, wherever it is said; a pod that is being evicted says nothing of the kind.
_VERDICTS = (Exit.BAD_SPEC, Exit.BAD_DATA, Exit.DIVERGED, Exit.OUT_OF_MEMORY)
_OTHERS = (Exit.STOPPED, Exit.KILLED, Exit.FAILED)


class CannotRender(ValueError):
    """An order that no objects can be made of here, with everything that is in the way."""

    def __init__(self, problems: list[Problem]):
        super().__init__("; ".join(f"{p.path}: {p.message}" for p in problems))
        self.problems = problems


@dataclass(frozen=True)
class Objects:
    """The objects of an attempt. In this order they are created: pods start once the Secret is there, and by then the
    names and the policy are."""

    job: Manifest
    service: Manifest
    network_policy: Manifest
    secret: Manifest

    @property
    def name(self) -> str:
        """The attempt's, which all of them have."""
        return str(self.job["metadata"]["name"])

    @property
    def dependents(self) -> tuple[Manifest, Manifest, Manifest]:
        """Those that the Job owns."""
        return self.service, self.network_policy, self.secret

    def all(self) -> list[Manifest]:
        """All of them, in the order of their creation."""
        return [self.job, *self.dependents]


def objects(name: str, order: Order, token: str, site: Site, image: str | None = None) -> Objects:
    """What an attempt is made of; equal arguments give equal bytes.

    `image` is the worker's, where it is not that of the site: a job keeps that of its first attempt. Raises
    CannotRender, ValueError for a name that Kubernetes or the names that follow from it have no room for.
    """
    document = order.model_dump_json().encode()
    _check_size(len(document) + len(token) + len(site.worker_url))
    hashed = spec_sha256(order.spec, order.inputs)
    contents = {"token": token.encode(), "order.json": document, "control-url": site.worker_url.encode()}
    made = _made(name, order.job, order.attempt, order.spec, site, image or site.pod.image, hashed)
    data = {key: base64.b64encode(content).decode() for key, content in contents.items()}
    return replace(made, secret={**made.secret, "data": data})


def preview(spec: JobSpec, inputs: Mapping[str, Input], site: Site) -> Objects:
    """What a job's first attempt would be made of, with sentences in the place of what only an attempt has.

    Raises CannotRender.
    """
    job = "job-dry-run"
    _check_size(len(spec.model_dump_json()) + sum(len(given.model_dump_json()) for given in inputs.values()) + _ROOM)
    hashed = spec_sha256(spec, inputs)
    made = _made(f"{job}-a1", job, 1, spec, site, site.pod.image, hashed)
    said = {
        "token": "A token that is signed when the attempt starts, and ends with it.",
        "order.json": "The spec, what its references were resolved to, and where the attempt's files lie.",
        "control-url": site.worker_url,
    }
    return replace(made, secret={**made.secret, "stringData": said})


def owned_by(made: Objects, uid: str) -> Objects:
    """The objects, with the Job of this UID as the owner of the others: they go when it goes."""
    owner = {
        "apiVersion": made.job["apiVersion"],
        "kind": made.job["kind"],
        "name": made.job["metadata"]["name"],
        "uid": uid,
        "controller": True,
        # To block the owner's deletion takes a right to change it that the operator needs for nothing else.
        "blockOwnerDeletion": False,
    }
    service, network_policy, secret = (
        {**each, "metadata": {**each["metadata"], "ownerReferences": [owner]}} for each in made.dependents
    )
    return Objects(made.job, service, network_policy, secret)


def canonical(made: Manifest) -> bytes:
    """An object's bytes, the same for equal objects."""
    return json.dumps(made, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _made(name: str, job: str, attempt: int, spec: JobSpec, site: Site, image: str, hashed: str) -> Objects:
    """The objects but for what is in the Secret."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no attempt's name: at most 52 lower-case letters, digits and dashes")
    if problems := collisions(spec, site):
        raise CannotRender(problems)
    common = labels(site, job, attempt)
    metadata = {"name": name, "namespace": site.namespace, "labels": common}
    return Objects(
        job={
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                **metadata,
                "labels": common | _queue_labels(spec),
                "annotations": {SPEC_SHA256: hashed},
            },
            "spec": _job_spec(name, job, attempt, spec, site, image),
        },
        service={
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "clusterIP": "None",
                # Pods look for each other before any of them is ready.
                "publishNotReadyAddresses": True,
                "selector": own_labels(site, job, attempt),
                "ports": [
                    {"name": "launcher", "port": LAUNCHER_PORT, "targetPort": LAUNCHER_PORT, "protocol": "TCP"},
                    {"name": "ranks", "port": RANKS_PORT, "targetPort": RANKS_PORT, "protocol": "TCP"},
                ],
            },
        },
        network_policy={
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata,
            "spec": policy(site, job, attempt),
        },
        secret={"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "immutable": True},
    )


def _job_spec(name: str, job: str, attempt: int, spec: JobSpec, site: Site, image: str) -> dict[str, Any]:
    wanted = spec.resources.pod
    template: dict[str, Any] = {"labels": labels(site, job, attempt)}
    if wanted is not None and wanted.annotations:
        template["annotations"] = dict(wanted.annotations)
    made: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": spec.resources.nodes,
        "parallelism": spec.resources.nodes,
        # A next attempt is a Job of its own; within one no pod is ever replaced.
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failures()},
        "template": {"metadata": template, "spec": pod_spec(name, spec, site, image)},
    }
    # Kueue takes the suspension back when it admits the Job. Its webhook would set it; without one a pod could start.
    return {"suspend": True, **made} if spec.queue.kueue is not None else made


def _failures() -> list[dict[str, Any]]:
    """One rule for each way to fail: the Job's condition then names the code when no pod is left to ask.

    The first that fits decides. A pod that is evicted is sent SIGTERM and exits 143, or is killed: so the disruption
    comes before the codes that it leads to, and after those that only the worker itself gives.
    """
    disrupted = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    # Whatever else: the launcher was killed by another signal, or its image is no worker's.
    anything = _on("NotIn", [int(Exit.DONE)])
    return [
        *(_on("In", [int(code)]) for code in _VERDICTS),
        disrupted,
        *(_on("In", [int(code)]) for code in _OTHERS),
        anything,
    ]


def _on(operator: str, codes: list[int]) -> dict[str, Any]:
    return {
        "action": "FailJob",
        "onExitCodes": {"containerName": CONTAINER, "operator": operator, "values": codes},
    }


def _queue_labels(spec: JobSpec) -> dict[str, str]:
    found = {QUEUE: spec.queue.kueue, QUEUE_PRIORITY: spec.queue.kueue_priority_class}
    return {key: value for key, value in found.items() if value is not None}


def _check_size(size: int) -> None:
    if size > MOST_SECRET_BYTES:
        said = f"takes {size:,} bytes with all that it refers to, and a Secret holds {MOST_SECRET_BYTES:,}; shorten it"
        raise CannotRender([Problem("(the whole)", said)])
