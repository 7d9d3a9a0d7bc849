"""Where an output came from, as it says itself: `lineage.json`."""

import importlib.metadata
import platform

from worker.contract.order import Order

_VERSIONS_OF = ("rlhf-operator", "torch", "transformers", "peft", "deepspeed", "safetensors")


def lineage(order: Order, step: int) -> dict[str, object]:
    """Where an output came from: the job, what it read (with hashes), its spec, and the versions that made it."""
    read = {
        path: {"reference": source.reference, "kind": source.kind, "sha256": source.sha256}
        for path, source in order.inputs.items()
    }
    return {
        "job": order.job,
        "attempt": order.attempt,
        "step": step,
        "inputs": read,
        "spec": order.spec.model_dump(mode="json"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _VERSIONS_OF},
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
