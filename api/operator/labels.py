"""How objects of attempts are told apart: from other programs', from other control planes', and from each other."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from api.operator.site import Site
from worker.contract.order import Input
from worker.contract.spec import JobSpec

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "rlhf-operator"
INSTALLATION = "rlhf-operator/installation"
JOB = "rlhf-operator/job"
PROJECT = "rlhf-operator/project"
"""Of a Secret that people made: the project whose jobs may name it."""
ATTEMPT = "rlhf-operator/attempt"
SPEC_SHA256 = "rlhf-operator/spec-sha256"
"""An annotation of the Job: the hash of what it was made from."""
QUEUE = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"

Manifest = dict[str, Any]


def selector(site: Site) -> str:
    """The label selector of all objects that are this control plane's."""
    return f"{MANAGED_BY}={MANAGER},{INSTALLATION}={site.installation}"


def selector_of(site: Site, name: str) -> str:
    """The label selector of all that belongs to one attempt."""
    job, _, attempt = name.rpartition("-a")
    return f"{selector(site)},{JOB}={job},{ATTEMPT}={attempt}"


def labels(site: Site, job: str, attempt: int) -> dict[str, str]:
    """The labels of all objects and pods of an attempt."""
    return {MANAGED_BY: MANAGER, **own_labels(site, job, attempt)}


def own_labels(site: Site, job: str, attempt: int) -> dict[str, str]:
    """The labels that select an attempt's pods, and no others."""
    return {INSTALLATION: site.installation, JOB: job, ATTEMPT: str(attempt)}


def ours(found: Manifest, site: Site) -> bool:
    """Whether an object is this control plane's."""
    given = _labels(found)
    return given.get(MANAGED_BY) == MANAGER and given.get(INSTALLATION) == site.installation


def attempt_of(found: Manifest) -> str | None:
    """The name of the attempt that an object or a pod belongs to; None: of none."""
    given = _labels(found)
    return f"{given[JOB]}-a{given[ATTEMPT]}" if JOB in given and ATTEMPT in given else None


def queued(job: Manifest) -> bool:
    """Whether Kueue decides when a Job's pods start."""
    return QUEUE in _labels(job)


def fingerprint(job: Manifest) -> tuple[str | None, ...]:
    """Whose a Job is, and what it was made from: equal for the same attempt of the same control plane alone.

    Not for equal Jobs: an upgrade of the control plane between two tries to create one may change its image.
    """
    given = _labels(job)
    made_from = (job["metadata"].get("annotations") or {}).get(SPEC_SHA256)
    return *(given.get(key) for key in (MANAGED_BY, INSTALLATION, JOB, ATTEMPT)), made_from


def spec_sha256(spec: JobSpec, inputs: Mapping[str, Input]) -> str:
    """The hash of what an attempt does: not of where, and not of the token."""
    # Defaults are left out: a newer version's fields have some.
    made_from = {
        "spec": spec.model_dump(mode="json", exclude_defaults=True),
        "inputs": {path: [given.kind, given.reference, given.sha256] for path, given in inputs.items()},
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _labels(found: Manifest) -> dict[str, str]:
    given: dict[str, str] = found["metadata"].get("labels") or {}
    return given
