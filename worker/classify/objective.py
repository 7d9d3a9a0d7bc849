"""The losses of classification, summed over what is labelled (see `worker/losses.py` on why sums).

One class:       -weight log softmax(logits)[class], divided by the weights' sum over the update
several classes: the mean over the classes of -weight y log s(logit) - (1 - y) log s(-logit), divided by the rows
a number:        (output - number)^2, divided by the rows

With these divisors each is torch's own loss over the whole update: CrossEntropyLoss(weight), BCEWithLogitsLoss(
pos_weight) and MSELoss, as transformers computes them.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from worker.classify.classes import Classes
from worker.classify.examples import ClassBatch, Example
from worker.contract.classify import ClassifyStage
from worker.engine import Compute
from worker.heads import HEAD, head_of, hidden_states, transformer


def class_logits(model: nn.Module, batch: ClassBatch) -> Tensor:
    """What the head says where labels are read, in fp32: [read, outputs].

    `model` may be bare, wrapped by peft or an engine. A decoder's text is read at its last real token by its length:
    transformers looks for it by the padding's id.
    """
    inner = transformer(model)
    words = type(inner).__name__.endswith("ForTokenClassification")
    if not words and isinstance(getattr(inner, HEAD, None), nn.Module):
        hidden = hidden_states(model, batch)[batch.rows, batch.times]
        found: Tensor = head_of(model)(hidden)
        return found.float()
    more: dict[str, Any] = {"use_cache": False} if "use_cache" in inspect.signature(inner.forward).parameters else {}
    logits: Tensor = inner(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **more).logits
    return (logits[batch.rows, batch.times] if words else logits[batch.rows]).float()


def class_sums(logits: Tensor, batch: ClassBatch, positive: Tensor | None = None) -> Tensor:
    """[loss, right, read] of the logits where labels are read; the loss is to be divided by the labels' weights.

    Of several classes, `positive` weighs those that a row has, [classes], and a row is right if all its classes are.
    """
    if batch.labels.dtype == torch.int64:
        loss = (F.cross_entropy(logits, batch.labels, reduction="none") * batch.weights).sum()
        right = (logits.argmax(dim=-1) == batch.labels).sum()
    elif batch.labels.dim() == 2:
        positive = positive.to(logits) if positive is not None else None
        every = F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none", pos_weight=positive)
        loss = every.mean(dim=-1).sum()
        right = ((logits > 0) == (batch.labels > 0.5)).all(dim=-1).sum()
    else:
        loss = (logits[:, 0] - batch.labels).square().sum()
        right = logits.new_zeros(())
    return torch.stack([loss, right.float(), loss.new_tensor(float(len(batch.labels)))])


def classifying(positive: Tensor | None = None) -> Compute:
    """What an engine computes to learn classes: `class_sums` of what the model says."""

    def sums(model: nn.Module, batch: ClassBatch) -> Tensor:
        return class_sums(class_logits(model, batch), batch, positive)

    return sums


def weights_of(stage: ClassifyStage, classes: Classes, items: Sequence[Example]) -> NDArray[np.float32] | None:
    """Each class's weight, [classes]: the one given, or by how rare it is among `items`; None: none were asked for.

    Where a loss is divided by the weights' sum only their ratios count: the least is then made 1. Balanced, all classes
    together weigh the same; of several classes, having one weighs as much as not having it.
    """
    if stage.class_weights is None:
        return None
    several = classes.task == "multi_label"
    if isinstance(stage.class_weights, dict):
        given = np.array([stage.class_weights.get(name, 1.0) for name in classes.names])
    else:
        if several:
            having = np.sum([item.labels[0] for item in items], axis=0)
            rest = len(items) - having
        else:
            having = np.bincount(np.concatenate([item.labels for item in items]), minlength=len(classes.names))
            rest = np.full(len(classes.names), having.sum() / len(classes.names))
        # A class that no row has, or every row: nothing to balance.
        given = np.where((having > 0) & (rest > 0), rest / np.maximum(having, 1), 1.0)
    return (given if several else given / given.min()).astype(np.float32)
