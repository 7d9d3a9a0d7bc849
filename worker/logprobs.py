"""Log-probabilities of tokens, in fp32 and in chunks: a few numbers a token are kept, whatever the vocabulary."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from worker.losses import Labelled, chunks, labelled_logits
from worker.packing import IGNORED


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[label], in nats: [tokens] in fp32, of logits [tokens, vocabulary]."""
    chosen: Tensor
    chosen, _ = _LogProbabilities.apply(logits, labels, temperature, False)
    return chosen


def log_probabilities(model: nn.Module, batch: Labelled, temperature: float = 1.0) -> Tensor:
    """What each labelled token had for a log-probability, in nats, 0 elsewhere: [rows, time] in fp32."""
    mask = batch.labels != IGNORED
    chosen = token_logprobs(labelled_logits(model, batch), batch.labels[mask], temperature)
    return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_scatter(mask, chosen)


def with_entropy(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and the entropy of each position, in nats: [tokens] each."""
    chosen: Tensor
    entropies: Tensor
    chosen, entropies = _LogProbabilities.apply(logits, labels, temperature, True)
    return chosen, entropies


class _LogProbabilities(torch.autograd.Function):
    """log softmax(logits / temperature)[label] and the entropy of each position, in fp32, [tokens] each.

    In chunks, so that what stays for the backward pass is the logits as they came and two numbers a token.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, labels: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        # logits: [tokens, vocabulary]; labels: [tokens]
        empty = torch.zeros(0, dtype=torch.float32, device=logits.device)
        chosen, log_sums, entropies = [empty], [empty], [empty]
        for part, label in chunks(logits, labels):
            scaled = part.float() / temperature
            log_sum = torch.logsumexp(scaled, dim=-1)
            chosen.append(scaled.gather(1, label[:, None])[:, 0] - log_sum)
            log_sums.append(log_sum)
            if with_entropy:
                scaled -= log_sum[:, None]
                # A token that a model rules out has logarithm -inf and probability 0; their product is 0.
                entropies.append(-(scaled.exp() * scaled.clamp_(min=-1e30)).sum(dim=-1))
        entropy = torch.cat(entropies)
        ctx.save_for_backward(logits, labels, torch.cat(log_sums), entropy)
        ctx.temperature = temperature  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return torch.cat(chosen), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, entropy_grad: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        logits, labels, log_sums, entropies = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(log_sums)
        gradient = torch.empty_like(logits)
        done = 0
        for part, label in chunks(logits, labels):
            here = slice(done, done + len(part))
            logs = part.float() / ctx.temperature - log_sums[here, None]
            wanted = grad[here, None]
            # dl/dz = one-hot - p, dH/dz = -p (log p + H), with z = logits / temperature
            if entropy_grad is None:
                found = logs.exp_().mul_(-wanted)
            else:
                probabilities = logs.exp()
                logs.clamp_(min=-1e30).add_(entropies[here, None]).mul_(-entropy_grad[here, None])
                found = probabilities.mul_(logs.sub_(wanted))
            gradient[here] = found.scatter_add_(1, label[:, None], wanted).div_(ctx.temperature)
            done = here.stop
        return gradient, None, None, None
