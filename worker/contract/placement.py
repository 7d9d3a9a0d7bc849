"""Which nodes a job's pods may run on: Kubernetes' tolerations and affinities, in its words with underscores.

`model_dump(by_alias=True, exclude_none=True)` gives what Kubernetes reads.
"""

from typing import Annotated, Literal

from pydantic import AliasGenerator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from worker.contract.names import DnsLabel, LabelKey, LabelValue
from worker.contract.values import Strict

_MOST = 32
_EFFECT = Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class OfKubernetes(Strict):
    """A part of a spec that Kubernetes reads: written with its own names' words, joined by underscores."""

    model_config = ConfigDict(alias_generator=AliasGenerator(serialization_alias=to_camel))


class Toleration(OfKubernetes):
    """A taint that does not keep the pods from a node."""

    key: LabelKey | None = Field(default=None, description="absent, with `Exists`: every taint")
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = Field(default=None, description="of the taint, with `Equal`")
    effect: _EFFECT | None = Field(default=None, description="absent: all of them")
    toleration_seconds: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="how long the pods stay once a `NoExecute` taint comes; absent: for good"
    )

    @model_validator(mode="after")
    def _whole(self) -> "Toleration":
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("`Exists` looks at no value; leave `value` out, or write operator: Equal")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("give the taint's `key`, or write operator: Exists")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("`toleration_seconds` needs effect: NoExecute")
        return self


class NodeRequirement(OfKubernetes):
    """What a node's label must be."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: Annotated[list[LabelValue], Field(max_length=256)] = []

    @model_validator(mode="after")
    def _fitting(self) -> "NodeRequirement":
        _check_values(self.operator, self.values)
        return self


class NodeTerm(OfKubernetes):
    """Requirements that a node must meet all of."""

    match_expressions: Annotated[list[NodeRequirement], Field(min_length=1, max_length=_MOST)]


class NodeTerms(OfKubernetes):
    """Terms of which a node must meet one."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1, max_length=_MOST)]


class PreferredNode(OfKubernetes):
    """A term that makes a node more welcome."""

    weight: Annotated[int, Field(ge=1, le=100)]
    preference: NodeTerm


class NodeAffinity(OfKubernetes):
    """Which nodes are wanted."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = None
    preferred_during_scheduling_ignored_during_execution: Annotated[list[PreferredNode], Field(max_length=_MOST)] = []


class LabelRequirement(OfKubernetes):
    """What a pod's label must be."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: Annotated[list[LabelValue], Field(max_length=256)] = []

    @model_validator(mode="after")
    def _fitting(self) -> "LabelRequirement":
        _check_values(self.operator, self.values)
        return self


class LabelSelector(OfKubernetes):
    """Pods by their labels; an empty one means all pods."""

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=_MOST)] = {}
    match_expressions: Annotated[list[LabelRequirement], Field(max_length=_MOST)] = []


class PodTerm(OfKubernetes):
    """Other pods, and how near to them: `topology_key` is the node label whose value is shared."""

    label_selector: LabelSelector
    topology_key: LabelKey = Field(examples=["kubernetes.io/hostname", "topology.kubernetes.io/zone"])
    namespaces: Annotated[list[DnsLabel], Field(max_length=_MOST)] = Field(
        default=[], description="where those pods are; absent: in the job's own namespace"
    )
    match_label_keys: Annotated[list[LabelKey], Field(max_length=_MOST)] = Field(
        default=[],
        description="labels whose values are those of the pod itself: `batch.kubernetes.io/job-name` means the other "
        "pods of the same attempt. From Kubernetes 1.31 on",
    )


class PreferredPods(OfKubernetes):
    """A term that makes a node more welcome."""

    weight: Annotated[int, Field(ge=1, le=100)]
    pod_affinity_term: PodTerm


class PodAffinity(OfKubernetes):
    """Which other pods are wanted near, or far."""

    required_during_scheduling_ignored_during_execution: Annotated[list[PodTerm], Field(max_length=_MOST)] = []
    preferred_during_scheduling_ignored_during_execution: Annotated[list[PreferredPods], Field(max_length=_MOST)] = []


class Affinity(OfKubernetes):
    """Where the pods are drawn to. Kubernetes' own structure."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


def _check_values(operator: str, values: list[str]) -> None:
    """Raises ValueError where an operator does not go with its values."""
    if operator in ("Exists", "DoesNotExist") and values:
        raise ValueError(f"`{operator}` looks at no value; leave `values` out")
    if operator in ("In", "NotIn") and not values:
        raise ValueError(f"`{operator}` needs `values`")
    if operator in ("Gt", "Lt") and (len(values) != 1 or not values[0].lstrip("-").isdecimal()):
        raise ValueError(f"`{operator}` needs one value, a whole number written as a text")
