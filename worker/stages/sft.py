"""Supervised fine-tuning on dialogues: the loss is on the assistant's turns alone.

The mean of -log p(token | what came before it) over all trained tokens of an update. Which tokens those are is found
by `worker/data.py` from the chat template; packing keeps whole dialogues together, unseen by each other.
"""

from worker.context import Context
from worker.contract.protocol import Output
from worker.contract.stages import SftStage
from worker.dataset import read_dataset
from worker.distributed import check_accelerator
from worker.losses import token_loss_sum
from worker.models import load
from worker.training import train


def run(context: Context) -> list[Output]:
    """Fine-tunes the spec's model on its dialogues. Gives the outputs on rank 0. Raises WorkerFailure."""
    stage = context.order.spec.stage
    assert isinstance(stage, SftStage)
    check_accelerator(context.order.spec)
    with context.channel.working():
        loaded = load(context.order.spec, context.order.inputs, context.store, waiting=context.channel.going_on)
        dataset = read_dataset(context.order, stage, loaded.tokenizer, split=False)
    return train(context, loaded, dataset, token_loss_sum)
