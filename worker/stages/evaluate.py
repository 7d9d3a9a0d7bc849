"""Evaluation of a finished model on a test set: one step, no output; what is measured follows from the rows.

`{text}` and `{messages}`: perplexity, and how often the most probable token is right. `{prompt, chosen, rejected}` and
`{prompt, answers}`: how well a reward model ranks. `{prompt}`: the reward of sampled answers, and how often they win.
An attempt that was stopped has nothing to go on from: the next one begins anew, and measures the same.
"""

from worker.context import Context
from worker.contract.evaluation import EvaluateStage
from worker.contract.protocol import Output
from worker.distributed import Ranks, check_accelerator, own_device
from worker.exam import TEST, Exam, kind_of, of_comparisons, of_texts
from worker.rl.contest import of_prompts


def run(context: Context) -> list[Output]:
    """Evaluates the spec's model. Gives no outputs. Raises WorkerFailure."""
    stage = context.order.spec.stage
    assert isinstance(stage, EvaluateStage)
    check_accelerator(context.order.spec)
    channel = context.channel
    if context.rank == 0 and context.order.attempt > 1:
        channel.resumed_from(0)
    channel.report("evaluating", 0, steps=1)
    with channel.working():
        exam = Exam(context, stage, Ranks(context.rank, context.world), own_device(), [])
        path, kind = kind_of(context.order.inputs[TEST])
    match kind:
        case "text" | "messages":
            metrics = of_texts(exam, path, kind)
        case "chosen" | "answers":
            metrics = of_comparisons(exam, path)
        case "prompt":
            metrics = of_prompts(exam)
    if context.rank == 0:
        for note in exam.notes:
            channel.event("ModelNote", note)
        channel.event("Evaluated", _in_words(metrics, stage), step=1)
    channel.report("evaluating", 1, steps=1, metrics=metrics)
    exam.ranks.barrier()
    return []


def _in_words(metrics: dict[str, float], stage: EvaluateStage) -> str:
    against = f" against {stage.against}" if stage.against is not None else ""
    numbers = ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in metrics.items())
    return f"{stage.model}{against} on {stage.data.test}: {numbers}."
