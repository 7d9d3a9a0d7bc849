"""REINFORCE leave-one-out (Ahmadian et al., 2024): answers to one prompt are compared with each other.

What an answer is worth, and the loss, is in `worker/rl/group.py`.
"""

from worker.context import Context
from worker.contract.protocol import Output
from worker.rl.groups import Groups
from worker.rl.iterations import learn_by


def run(context: Context) -> list[Output]:
    """Trains the spec's actor. Gives the outputs on rank 0. Raises WorkerFailure."""
    return learn_by(Groups, context)
