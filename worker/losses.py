"""The loss of a language model, summed over trained tokens.

Sums, not means: rows have different numbers of trained tokens, and the mean of their means is not the mean over
tokens (seen: a gradient whose cosine to the true one is .52). Whoever calls divides by the whole update's count.
"""

import inspect
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from worker.packing import IGNORED, MicroBatch

# Logits are upcast to fp32 this many numbers at a time: 64 MiB, whatever the vocabulary.
_CHUNK = 2**24


class Labelled(Protocol):
    """What a language model reads, and which of its logits are wanted."""

    @property
    def input_ids(self) -> Tensor:
        """[rows, time]."""

    @property
    def labels(self) -> Tensor:
        """[rows, time]: what the logits at a position predict; IGNORED where they are not wanted."""

    @property
    def position_ids(self) -> Tensor:
        """[rows, time]."""

    @property
    def attention_mask(self) -> Tensor | None:
        """[rows, time], or None."""


def token_loss_sum(model: nn.Module, batch: MicroBatch) -> Tensor:
    """The summed negative log-likelihood, in nats, of a micro-batch's trained tokens: a scalar in fp32.

    `model` may be the bare model, wrapped by peft, or a DeepSpeed engine. Logits are made for the labelled positions
    alone, by the model itself, so whatever it does to them (soft caps, scales) is in the loss.
    """
    return likelihood_sum(labelled_logits(model, batch), batch)


def likelihood_sum(logits: Tensor, batch: Labelled) -> Tensor:
    """The summed negative log-likelihood of a micro-batch's labels by its `labelled_logits`: a scalar in fp32."""
    nats: Tensor = _NegativeLogLikelihood.apply(logits, batch.labels[batch.labels != IGNORED])
    return nats


def text_sums(model: nn.Module, batch: MicroBatch) -> Tensor:
    """[nats, tokens whose most probable prediction is right, tokens] of a micro-batch's labelled positions, in fp32."""
    return text_sums_of(labelled_logits(model, batch), batch)


def text_sums_of(logits: Tensor, batch: Labelled) -> Tensor:
    """The same by a micro-batch's `labelled_logits`."""
    labels = batch.labels[batch.labels != IGNORED]
    sums = torch.zeros(3, device=labels.device)
    for part, label in chunks(logits, labels):
        nats = nn.functional.cross_entropy(part.float(), label, reduction="sum")
        sums += torch.stack([nats, (part.argmax(dim=-1) == label).sum(), label.new_tensor(len(label))])
    return sums


def labelled_logits(model: nn.Module, batch: Labelled) -> Tensor:
    """The logits of the labelled positions alone, in the weights' precision: [labelled, vocabulary].

    Row by row, each from left to right, as `batch.labels[batch.labels != IGNORED]` is.
    """
    labelled = batch.labels != IGNORED  # [rows, time]
    if _selects_positions(type(_causal_lm(model))):
        return _forward(model, batch, logits_to_keep=labelled)
    return _forward(model, batch)[labelled]


def _forward(model: nn.Module, batch: Labelled, **more: Any) -> Tensor:
    logits: Tensor = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        **more,
    ).logits
    return logits


def _causal_lm(model: nn.Module) -> nn.Module:
    """The transformers model inside an engine's and peft's wrapping."""
    inner = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


@cache
def _selects_positions(architecture: type[nn.Module]) -> bool:
    """Whether a model makes logits only where a [rows, time] mask says so. Those that do call one function for it."""
    return "slice_logits_to_keep" in inspect.unwrap(architecture.forward).__code__.co_names


class _NegativeLogLikelihood(torch.autograd.Function):
    """Sum of -log softmax(logits)[label], in fp32 chunks. What stays for the backward pass is the logits as they came.

    The usual cross-entropy keeps two more copies of them in fp32.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, labels: Tensor) -> Tensor:
        # logits: [trained, vocabulary]; labels: [trained]
        log_sums, total = [], torch.zeros((), dtype=torch.float32, device=logits.device)
        for part, label in chunks(logits, labels):
            log_sum = torch.logsumexp(part.float(), dim=-1)  # [chunk]
            total += (log_sum - part.gather(1, label[:, None])[:, 0].float()).sum()
            log_sums.append(log_sum)
        ctx.save_for_backward(logits, labels, torch.cat(log_sums) if log_sums else total.new_zeros(0))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, labels, log_sums = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        done = 0
        for part, label in chunks(logits, labels):
            end = done + len(part)
            # d/dlogits = softmax - one-hot
            probabilities = (part.float() - log_sums[done:end, None]).exp_()
            probabilities.scatter_add_(1, label[:, None], probabilities.new_full((len(part), 1), -1.0))
            gradient[done:end] = probabilities.mul_(grad)
            done = end
        return gradient, None


def chunks(logits: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Parts of logits [labelled, vocabulary] with their labels, small enough to be made fp32."""
    size = max(1, _CHUNK // max(1, logits.shape[-1]))
    return list(zip(logits.split(size), labels.split(size), strict=True)) if len(labels) else []
