"""Forgetting gradients: DeepSpeed keeps them in a place of its own for each of its optimizers.

DeepSpeed offers no call for it. What is reset here is what its own optimizers reset when they skip a step whose
gradients are not finite (`step` of stage_1_and_2.py, stage3.py and bf16_optimizer.py in 0.19).
"""

from typing import Any


def discard(engine: Any) -> None:
    """Leaves `engine` as it was before the first backward of the update at hand; weights and states stay."""
    optimizer = engine.optimizer
    match type(optimizer).__name__:
        case "BF16_Optimizer":
            optimizer.clear_hp_grads()
            optimizer.clear_lp_grads(set_to_none=True)
        case "DeepSpeedZeroOptimizer":
            _zero_1_and_2(optimizer)
        case "DeepSpeedZeroOptimizer_Stage3":
            optimizer.zero_grad(set_to_none=True)
            optimizer.averaged_gradients = {}
            optimizer._offload_boundary_param_ids = set()
        case _:
            engine.zero_grad()


def _zero_1_and_2(optimizer: Any) -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

    optimizer.zero_grad(set_to_none=True)
    optimizer._release_preflattened_grad_buffers()
    optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
    if optimizer.cpu_offload:
        optimizer._offload_accumulated_param_ids = set()
        optimizer.reset_cpu_buffers()
    for group in optimizer.averaged_gradients:
        optimizer.averaged_gradients[group] = None
    for group in optimizer.all_grad_tensors:
        optimizer.all_grad_tensors[group] = None
