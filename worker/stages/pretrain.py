"""Pretraining: next-token prediction on raw text (Radford et al., 2018), from scratch or continued.

Every token of a text is trained, and the one that ends it. Texts are laid end to end into full rows of `max_length`
tokens and cut where a row is full; two texts in a row do not see each other.
"""

from worker.context import Context
from worker.contract.protocol import Output
from worker.contract.stages import PretrainStage
from worker.dataset import read_dataset
from worker.distributed import check_accelerator
from worker.losses import token_loss_sum
from worker.models import load
from worker.training import train


def run(context: Context) -> list[Output]:
    """Trains the spec's model on its texts. Gives the outputs on rank 0. Raises WorkerFailure."""
    stage = context.order.spec.stage
    assert isinstance(stage, PretrainStage)
    check_accelerator(context.order.spec)
    with context.channel.working():
        loaded = load(context.order.spec, context.order.inputs, context.store, waiting=context.channel.going_on)
        dataset = read_dataset(context.order, stage, loaded.tokenizer, split=True)
    return train(context, loaded, dataset, token_loss_sum)
