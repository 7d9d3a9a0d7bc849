"""Pipelines of rehearsals, which need no torch and hand over models of a single number."""

from typing import Any

from tests.api.conftest import plane, settings

__all__ = ["plane", "settings"]


def rehearsal(*, after: str | None = None, steps: int = 3, **stage: Any) -> dict[str, Any]:
    """A step that hands over a model, and goes on from that of the step `after`."""
    begins = {"model": {"from": f"{after}.model"}} if after is not None else {}
    return {"stage": {"type": "rehearse", "output": True, "steps": steps, "seconds_per_step": 0.01, **begins, **stage}}


def fork(name: str = "fork") -> dict[str, Any]:
    """base -> left, right; left -> last."""
    return {
        "name": name,
        "steps": {
            "last": rehearsal(after="left"),
            "left": rehearsal(after="base"),
            "right": rehearsal(after="base"),
            "base": rehearsal(),
        },
    }


def by_step(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The steps of a pipeline as it is shown."""
    return {step["step"]: step for step in pipeline["steps"]}
