"""Supervised fine-tuning on dialogues: the loss is on the assistant's turns alone.

The mean of -log p(token | what came before it) over all trained tokens of an update. Which tokens those are is found
by `worker/data.py` from the chat template; packing keeps whole dialogues together, unseen by each other.
"""

from typing import Any

from torch import Tensor, nn

from worker.context import Context
from worker.contract.protocol import Output
from worker.contract.stages import SftStage
from worker.losses import token_loss_sum
from worker.method import Method
from worker.training import train


def run(context: Context) -> list[Output]:
    """Fine-tunes the spec's model on its dialogues. Gives the outputs on rank 0. Raises WorkerFailure."""
    stage = context.order.spec.stage
    assert isinstance(stage, SftStage)
    return train(context, Sft(stage))


class Sft(Method[SftStage]):
    """Dialogues, and the loss of a language model."""

    def objective(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss alone, in nats."""
        return token_loss_sum(model, batch)
