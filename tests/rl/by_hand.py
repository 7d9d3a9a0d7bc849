"""A PPO's updates worked out in numpy, from the logits and values that transformers gives row by row.

It shares no line with the worker. Of torch it takes the models' forward passes, and the way back from the gradient of
logits and values to that of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """One answer of a rollout, and what was known of it when the updates began: [answer tokens]."""

    prompt: list[int]
    tokens: list[int]
    logprobs: Array
    reference: Array
    values: Array
    score: float


@dataclass(frozen=True)
class Numbers:
    """The spec's."""

    gamma: float
    lam: float
    coef: float
    temperature: float
    entropy: float
    clip: float
    value_clip: float


def credit(answers: Sequence[Answer], numbers: Numbers) -> tuple[list[Array], list[Array], list[Array]]:
    """(KL, whitened advantages, returns) of each answer."""
    kls, advantages, returns = [], [], []
    for answer in answers:
        kl = answer.logprobs - answer.reference
        rewards = -numbers.coef * kl
        rewards[-1] += answer.score
        count = len(rewards)
        after = np.append(answer.values[1:], 0.0)
        errors = rewards + numbers.gamma * after - answer.values
        decay = numbers.gamma * numbers.lam
        advantage = np.array([sum(decay ** (k - t) * errors[k] for k in range(t, count)) for t in range(count)])
        kls.append(kl)
        advantages.append(advantage)
        returns.append(advantage + answer.values)
    every = np.concatenate(advantages)
    return kls, [(one - every.mean()) / every.std() for one in advantages], returns


def policy(
    logits: Array, answer: Answer, advantages: Array, numbers: Numbers, count: int
) -> tuple[dict[str, float], Array]:
    """One answer's part of the actor's loss, and the gradient by its logits [tokens, vocabulary]; `count` shares it."""
    scaled = logits / numbers.temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    logs = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    probabilities = np.exp(logs)
    chosen = np.eye(logits.shape[1])[answer.tokens]
    ratio = np.exp((logs * chosen).sum(axis=1) - answer.logprobs)
    bounded = np.clip(ratio, 1 - numbers.clip, 1 + numbers.clip)
    entropies = -(probabilities * logs).sum(axis=1)
    losses = np.maximum(-advantages * ratio, -advantages * bounded)
    learns = -advantages * ratio >= -advantages * bounded
    by_log = np.where(learns, -advantages * ratio, 0.0)[:, None] * (chosen - probabilities)
    by_entropy = numbers.entropy * probabilities * (logs + entropies[:, None])
    told = {
        "policy_loss": losses.sum() / count,
        "entropy": entropies.sum() / count,
        "clipped": float((~learns).sum()) / count,
    }
    return told, (by_log + by_entropy) / numbers.temperature / count


def value(
    values: Array, answer: Answer, returns: Array, numbers: Numbers, count: int
) -> tuple[dict[str, float], Array]:
    """One answer's part of the critic's loss, and the gradient by its values [tokens]; `count` shares it."""
    bounded = np.clip(values, answer.values - numbers.value_clip, answer.values + numbers.value_clip)
    plain, clipped = (values - returns) ** 2, (bounded - returns) ** 2
    learns = plain >= clipped
    told = {
        "value_loss": np.maximum(plain, clipped).sum() / 2 / count,
        "values_clipped": float((~learns).sum()) / count,
    }
    return told, np.where(learns, values - returns, 0.0) / count


class Adam:
    """AdamW on the weights of a torch model, in numpy, with the gradient cut to a norm over all of them."""

    def __init__(self, model: Any, lr: float, eps: float, clip: float, beta1: float = 0.9, beta2: float = 0.999):
        self._weights = list(model.parameters())
        self._lr, self._eps, self._clip, self._betas = lr, eps, clip, (beta1, beta2)
        self._first: list[Any] = [0.0] * len(self._weights)
        self._second: list[Any] = [0.0] * len(self._weights)
        self._steps = 0

    def step(self) -> float:
        """Takes a step by the gradients that the weights have, and forgets them. Gives their norm."""
        import torch

        gradients = [weight.grad.double().numpy() for weight in self._weights]
        norm = float(np.sqrt(sum((gradient**2).sum() for gradient in gradients)))
        self._steps += 1
        beta1, beta2 = self._betas
        for number, (weight, whole) in enumerate(zip(self._weights, gradients, strict=True)):
            gradient = whole * min(1.0, self._clip / norm)
            self._first[number] = beta1 * self._first[number] + (1 - beta1) * gradient
            self._second[number] = beta2 * self._second[number] + (1 - beta2) * gradient**2
            mean = self._first[number] / (1 - beta1**self._steps)
            square = self._second[number] / (1 - beta2**self._steps)
            moved = weight.detach().double().numpy() - self._lr * mean / (np.sqrt(square) + self._eps)
            weight.data.copy_(torch.from_numpy(moved))
            weight.grad = None
        return norm


def updates(
    actor: tuple[Any, Adam], critic: tuple[Any, Adam], answers: Sequence[Answer], numbers: Numbers, count: int
) -> list[dict[str, float]]:
    """What each of `count` updates measures; all answers are in each. Changes the models."""
    import torch

    _, advantages, returns = credit(answers, numbers)
    tokens = sum(len(answer.tokens) for answer in answers)
    told = []
    for _ in range(count):
        sums: dict[str, float] = {}
        for answer, advantage, wanted in zip(answers, advantages, returns, strict=True):
            first = len(answer.prompt) - 1
            span = slice(first, first + len(answer.tokens))
            ids = torch.tensor([[*answer.prompt, *answer.tokens]])
            logits = actor[0](ids).logits[0, span]
            hidden = critic[0].model(ids).last_hidden_state
            values = critic[0].score(hidden)[0, span, 0]
            of_policy, by_logits = policy(logits.detach().double().numpy(), answer, advantage, numbers, tokens)
            of_value, by_values = value(values.detach().double().numpy(), answer, wanted, numbers, tokens)
            logits.backward(torch.from_numpy(by_logits).to(logits.dtype))
            values.backward(torch.from_numpy(by_values).to(values.dtype))
            for name, part in (of_policy | of_value).items():
                sums[name] = sums.get(name, 0.0) + part
        norms = {"actor_grad_norm": actor[1].step(), "critic_grad_norm": critic[1].step()}
        told.append(sums | norms)
    return told
