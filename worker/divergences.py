"""How far two models' next-token distributions are apart, over the whole vocabulary.

With teacher T, student S and the mixture M = beta T + (1 - beta) S, in nats a position:

    forward   KL(T || S)                                              Hinton et al., 2015
    reverse   KL(S || T)                                              Gu et al., 2024
    jsd       beta KL(T || M) + (1 - beta) KL(S || M)                 Agarwal et al., 2024, eq. 1

In fp32 and in chunks, each computed again for its gradient: what stays is the logits as they came.
"""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Divergence = Literal["forward", "reverse", "jsd"]
# Numbers of logits that are made fp32 at a time: 64 MiB.
_CHUNK = 2**24


def divergence_sum(
    student: Tensor, teacher: Tensor, kind: Divergence, *, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """The divergence summed over positions, a scalar in fp32; both [positions, vocabulary], of which `student` learns.

    A vocabulary that is padded further than the other's is cut: those tokens are never said.
    """
    known = min(student.shape[-1], teacher.shape[-1])
    student, teacher = student[:, :known], teacher[:, :known]
    size = max(1, _CHUNK // max(1, known))
    total = torch.zeros((), dtype=torch.float32, device=student.device)
    of = partial(_of_chunk, kind=kind, beta=beta, temperature=temperature)
    for part, told in zip(student.split(size), teacher.split(size), strict=True):
        total = total + checkpoint(of, part, told, use_reentrant=False)
    return total


def _of_chunk(student: Tensor, teacher: Tensor, kind: Divergence, beta: float, temperature: float) -> Tensor:
    s = torch.log_softmax(student.float() / temperature, dim=-1)
    t = torch.log_softmax(teacher.float() / temperature, dim=-1)
    match kind:
        case "forward":
            return _kl(t, s)
        case "reverse":
            return _kl(s, t)
        case "jsd":
            mixture = torch.logaddexp(t + math.log(beta), s + math.log(1 - beta))
            return beta * _kl(t, mixture) + (1 - beta) * _kl(s, mixture)


def _kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one || other) of log-probabilities, summed. What has probability 0 adds nothing, whatever the other says."""
    return (one.exp() * (one.clamp(min=-1e30) - other.clamp(min=-1e30))).sum()
