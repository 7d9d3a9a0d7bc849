"""The losses of PPO: of the actor and of the critic, each over the answers of a micro-batch.

Shapes are [rows, time]. A row is a prompt, its answer, and padding on the right. Position t stands for the choice of
the token after it, as everywhere here: `labels[r, t]` is that token where it belongs to the answer, IGNORED elsewhere,
and a log-probability, a value, an advantage or a return at t is that of the same choice. So an answer of n tokens to a
prompt of m has its numbers at m - 1 … m + n - 2, and the critic's value there is from before the token is seen.

With l = log-probability of the token now, l' = when it was sampled, A = advantage, R = return, V and V' the values now
and then, a loss is, over the tokens of answers,

    actor    sum of max(-A rho, -A clip(rho, 1 - c, 1 + c)), rho = exp(l - l')     (Schulman et al., 2017, eq. 7)
             less `entropy` x sum of H, where that is asked for                    (eq. 9)
    critic   sum of max((V - R)^2, (clip(V, V' - c, V' + c) - R)^2) / 2            (eq. 9, clipped as in its code)

They are sums, for the reason given in `worker.losses`: whoever calls divides by the tokens of the whole minibatch, over
all ranks. Log-probabilities are of softmax(logits / temperature), in fp32, by one path for then and now: what sampling
itself saw was computed with a cache, and is another number. With dropout off and the same rows in a micro-batch, rho is
then exactly 1 until the weights change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worker.logprobs import with_entropy
from worker.losses import labelled_logits
from worker.packing import IGNORED
from worker.scores import values

POLICY_SUMS = ("loss", "policy_loss", "clipped", "tokens", "entropy", "step_kl", "ratio_error")
"""What `policy_sums` gives. All but the last add up over micro-batches and ranks; `ratio_error` is a maximum."""
VALUE_SUMS = ("loss", "clipped", "tokens")
"""What `value_sums` gives; they add up."""


@dataclass(frozen=True)
class AnswerBatch:
    """Prompts with their answers: tensors [rows, time], but for `lengths`, [rows]."""

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor  # the answer's token after each position; IGNORED elsewhere
    lengths: Tensor  # tokens of prompt and answer

    @property
    def attention_mask(self) -> None:
        """None: padding is on the right, where no real token looks."""
        return None

    @property
    def mask(self) -> Tensor:
        """[rows, time]: where a token of an answer is chosen."""
        return self.labels != IGNORED

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on `device`."""
        moved = {field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)}
        return type(self)(**moved)


@dataclass(frozen=True)
class PolicyBatch(AnswerBatch):
    """What the actor learns from. What stands where no token of an answer is chosen is not looked at."""

    old_logprobs: Tensor  # of the actor before the iteration's updates, nats
    advantages: Tensor


@dataclass(frozen=True)
class ValueBatch(AnswerBatch):
    """What the critic learns from. What stands where no token of an answer is chosen is not looked at."""

    old_values: Tensor  # of the critic before the iteration's updates
    returns: Tensor


def answer_batch(
    prompts: Sequence[Sequence[int] | NDArray[np.int32]], answers: Sequence[Sequence[int]], *, pad_id: int
) -> AnswerBatch:
    """Token ids as a batch. A prompt has at least one token. No rows at all: one of padding, which adds 0."""
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)] or [1]
    input_ids = np.full((len(lengths), max(lengths)), pad_id, dtype=np.int64)
    labels = np.full_like(input_ids, IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        first, end = len(prompt), len(prompt) + len(answer)
        input_ids[row, :first] = prompt
        input_ids[row, first:end] = answer
        labels[row, first - 1 : end - 1] = answer
    positions = torch.arange(max(lengths)).repeat(len(lengths), 1)
    return AnswerBatch(torch.from_numpy(input_ids), positions, torch.from_numpy(labels), torch.tensor(lengths))


def policy_sums(
    model: nn.Module, batch: PolicyBatch, *, clip: float, temperature: float, entropy: float = 0.0
) -> Tensor:
    """The actor's loss and what is told of it: [POLICY_SUMS] in fp32, of which `loss` alone has a gradient.

    `policy_loss` is the loss without the bonus, `clipped` the tokens that the clip keeps from learning, `step_kl` the
    nats (by k3) between the actor then and now, `ratio_error` the largest |rho - 1|.
    """
    mask = batch.mask
    logprobs, entropies = with_entropy(labelled_logits(model, batch), batch.labels[mask], temperature)
    advantages = batch.advantages[mask].float()
    log_ratio = logprobs - batch.old_logprobs[mask].float()  # [tokens]
    ratio = log_ratio.exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    policy_loss = torch.maximum(plain, clipped).sum()
    loss = policy_loss - entropy * entropies.sum() if entropy else policy_loss
    with torch.no_grad():
        # KL(then | now) of tokens drawn then, by k3: rho - 1 - log rho.
        step_kl = (torch.expm1(log_ratio) - log_ratio).sum()
        error = torch.cat([(ratio - 1).abs(), ratio.new_zeros(1)]).max()
        told = [policy_loss, (clipped > plain).sum(), mask.sum(), entropies.sum(), step_kl, error]
    return torch.stack([loss, *(one.detach().float() for one in told)])


def value_sums(model: nn.Module, batch: ValueBatch, *, value_clip: float | None) -> Tensor:
    """The critic's loss and what is told of it: [VALUE_SUMS] in fp32, of which `loss` alone has a gradient.

    `clipped` counts the tokens that the clip keeps from learning.
    """
    mask = batch.mask
    now = values(model, batch)[mask].float()  # [tokens]
    old, returns = batch.old_values[mask].float(), batch.returns[mask].float()
    plain = (now - returns).square()
    clipped = plain if value_clip is None else (now.clamp(old - value_clip, old + value_clip) - returns).square()
    loss = torch.maximum(plain, clipped).sum() / 2
    told = [(clipped > plain).sum(), mask.sum()]
    return torch.stack([loss, *(one.float() for one in told)])
