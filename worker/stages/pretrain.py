"""Pretraining: next-token prediction on raw text (Radford et al., 2018), from scratch or continued.

Every token of a text is trained, and the one that ends it. Texts are laid end to end into full rows of `max_length`
tokens and cut where a row is full; two texts in a row do not see each other.
"""

from worker.context import Context
from worker.contract.protocol import Output
from worker.contract.stages import PretrainStage
from worker.method import Method
from worker.training import train


def run(context: Context) -> list[Output]:
    """Trains the spec's model on its texts. Gives the outputs on rank 0. Raises WorkerFailure."""
    stage = context.order.spec.stage
    assert isinstance(stage, PretrainStage)
    return train(context, Pretrain(stage))


class Pretrain(Method[PretrainStage]):
    """Texts, which are cut where a row is full."""

    split = True
