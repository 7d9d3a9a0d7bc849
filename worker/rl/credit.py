"""An iteration's numbers side by side: one row an answer, one column a token of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.rl.experience import Floats, Judged, padded


@dataclass(frozen=True)
class Credit:
    """Tensors are [answers, tokens of the longest answer] in fp32, but for `scores`, [answers]."""

    mask: Tensor  # where an answer has a token
    logprobs: Tensor  # of the actor that sampled, nats
    reference: Tensor
    values: Tensor
    scores: Tensor
    kl: Tensor  # log actor - log reference
    advantages: Tensor
    returns: Tensor

    @classmethod
    def of(cls, judged: Sequence[Judged]) -> "Credit":
        """What was judged, as tensors; what is computed of it is 0 still."""
        counts = torch.tensor([len(one.logprobs) for one in judged])
        shape = (len(judged), int(counts.max()))

        def together(rows: list[Floats]) -> Tensor:
            return padded(rows, shape, [0] * len(rows))

        nothing = torch.zeros(shape)
        return cls(
            mask=torch.arange(shape[1])[None, :] < counts[:, None],
            logprobs=together([one.logprobs for one in judged]),
            reference=together([one.reference for one in judged]),
            values=together([one.values for one in judged]),
            scores=torch.tensor([one.score for one in judged], dtype=torch.float32),
            kl=nothing,
            advantages=nothing,
            returns=nothing,
        )
