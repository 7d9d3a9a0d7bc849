"""What ranks may compute on, by the names under which Kubernetes hands it out."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

# By resource, the name that DeepSpeed has for what it is. To torch, AMD's GPUs under ROCm are `cuda` too.
_DEEPSPEED = {
    "nvidia.com/gpu": "cuda",
    "amd.com/gpu": "cuda",
    "habana.ai/gaudi": "hpu",
    "gpu.intel.com/i915": "xpu",
    "gpu.intel.com/xe": "xpu",
    "huawei.com/Ascend910": "npu",
    "cambricon.com/mlu": "mlu",
}
# What the ranks have code for: how they meet, and where their tensors lie (worker/distributed.py).
_COMPUTED_ON = frozenset({"cuda"})
# What DeepSpeed has no code for.
_FOREIGN = {"google.com/tpu": "TPUs", "aws.amazon.com/neuron": "Trainium", "aws.amazon.com/neuroncore": "Trainium"}
_INSTEAD = "write nvidia.com/gpu, amd.com/gpu, or none for the processor"


def _known(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value in _FOREIGN:
        raise ValueError(f"training here is DeepSpeed's, which does not run on {_FOREIGN[value]}; {_INSTEAD}")
    if (name := _DEEPSPEED.get(value)) is not None and name not in _COMPUTED_ON:
        raise ValueError(f"these workers do not compute on it yet, though DeepSpeed does (as `{name}`); {_INSTEAD}")
    if value.startswith("nvidia.com/mig-"):
        raise ValueError(
            "is a slice of a GPU, and NCCL joins no ranks across slices; write nvidia.com/gpu, "
            "which names slices too where the node's MIG strategy is `single`"
        )
    return value


Accelerator = Annotated[
    Literal["none", "nvidia.com/gpu", "amd.com/gpu"],
    BeforeValidator(_known),
    Field(
        description="`none`: on the processor; else the resource's name on Kubernetes. `amd.com/gpu` needs workers "
        "with torch for ROCm"
    ),
]


def deepspeed_accelerator(resource: str) -> str | None:
    """What DeepSpeed calls this resource (its DS_ACCELERATOR); None for `none`. Raises KeyError."""
    return None if resource == "none" else _DEEPSPEED[resource]
