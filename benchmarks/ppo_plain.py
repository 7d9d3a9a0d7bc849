"""One iteration of PPO as textbooks and DeepSpeed-Chat have it, to compare with: nothing clever, nothing wrong.

`generate` on batches of prompts, padded to the longest; four models, each with a forward of its own and logits of every
position; updates on the same padded batches. No slot is refilled, no row is sorted, no logit is left out.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from benchmarks.rollout import Lengths


@dataclass
class Batch:
    """Prompts padded on the left, answers behind them padded on the right: [rows, time]."""

    ids: Tensor
    mask: Tensor  # real tokens
    answered: Tensor  # [rows, time - 1]: positions whose next token belongs to the answer
    old: Tensor = field(default_factory=lambda: torch.zeros(0))
    reference: Tensor = field(default_factory=lambda: torch.zeros(0))
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))
    returns: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def positions(self) -> Tensor:
        """[rows, time]: from 0 at each row's first real token."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)


def batch_of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Batch:
    """Answers that are there already, as `generate` would have laid them out."""
    before, behind = max(map(len, prompts)), max(map(len, answers))
    rows = [
        [0] * (before - len(p)) + list(p) + list(a) + [0] * (behind - len(a))
        for p, a in zip(prompts, answers, strict=True)
    ]
    mask = [
        [0] * (before - len(p)) + [1] * (len(p) + len(a)) + [0] * (behind - len(a))
        for p, a in zip(prompts, answers, strict=True)
    ]
    answered = torch.zeros(len(rows), before + behind - 1, dtype=torch.bool)
    for row, answer in enumerate(answers):
        answered[row, before - 1 : before - 1 + len(answer)] = True
    return Batch(torch.tensor(rows), torch.tensor(mask), answered)


class Plain:
    """Four models and two optimizers."""

    def __init__(self, actor: Any, reference: Any, critic: Any, reward: Any, *, lr: float, coef: float):
        self.actor, self.reference, self.critic, self.reward = actor, reference, critic, reward
        self.coef = coef
        self.optimizers = [
            torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
            for model in (actor, critic)
        ]
        self.seconds: dict[str, float] = {}

    def iterate(self, prompts: list[list[int]], lengths: list[int], size: int) -> None:
        """Rolls out, scores and updates, in batches of `size`."""
        began = time.perf_counter()
        batches = []
        for first in range(0, len(prompts), size):
            answers = self.generate(prompts[first : first + size], lengths[first : first + size])
            batches.append(batch_of(prompts[first : first + size], answers))
        generated = time.perf_counter()
        for batch in batches:
            self.score(batch)
        self.credit(batches)
        scored = time.perf_counter()
        for batch in batches:
            self.update(batch)
        self.seconds = {
            "generate": generated - began,
            "score": scored - generated,
            "update": time.perf_counter() - scored,
        }

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        """Answers of these lengths, by `generate`."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        self.actor.eval()
        with torch.no_grad():
            made = self.actor.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=max(lengths), eos_token_id=None, pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([Lengths(longest, lengths)]),
            )  # fmt: skip
        return [row[longest : longest + length].tolist() for row, length in zip(made, lengths, strict=True)]

    def logprobs(self, model: Any, batch: Batch) -> Tensor:
        """[rows, time - 1], of every next token."""
        logits = model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).logits
        return torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, batch.ids[:, 1:, None])[..., 0]

    def heads(self, model: Any, batch: Batch) -> Tensor:
        """The scalar head at every position, [rows, time]."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden = inner.model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        return inner.score(hidden)[..., 0].float()

    @torch.no_grad()
    def score(self, batch: Batch) -> None:
        """Four forwards."""
        batch.old = self.logprobs(self.actor, batch)
        batch.reference = self.logprobs(self.reference, batch)
        batch.values = self.heads(self.critic, batch)[:, :-1]
        last = batch.mask.shape[1] - 1 - batch.mask.flip(1).long().argmax(1)
        batch.scores = self.heads(self.reward, batch)[torch.arange(len(last)), last]

    def credit(self, batches: list[Batch]) -> None:
        """Advantages (gamma 1, lambda 0.95), whitened over the iteration, and returns."""
        for batch in batches:
            rewards = -self.coef * (batch.old - batch.reference) * batch.answered
            for row, answered in enumerate(batch.answered):
                rewards[row, answered.nonzero()[-1]] += batch.scores[row]
            values = batch.values * batch.answered
            batch.advantages = torch.zeros_like(rewards)
            advantage = value = torch.zeros(len(rewards))
            for t in reversed(range(rewards.shape[1])):
                advantage = rewards[:, t] + value - values[:, t] + 0.95 * advantage
                batch.advantages[:, t], value = advantage, values[:, t]
            batch.advantages *= batch.answered
            batch.returns = batch.advantages + values
        every = torch.cat([batch.advantages[batch.answered] for batch in batches])
        for batch in batches:
            batch.advantages = (batch.advantages - every.mean()) / (every.var(correction=0) + 1e-8).sqrt()

    def update(self, batch: Batch) -> tuple[float, float]:
        """One step of actor and critic. Gives the losses."""
        self.actor.train()
        self.critic.train()
        on, count = batch.answered, batch.answered.sum()
        ratio = (self.logprobs(self.actor, batch) - batch.old).exp()
        clipped = ratio.clamp(0.8, 1.2)
        policy = torch.maximum(-batch.advantages * ratio, -batch.advantages * clipped)[on].sum() / count
        policy.backward()
        now = self.heads(self.critic, batch)[:, :-1]
        near = batch.values + (now - batch.values).clamp(-0.2, 0.2)
        value = torch.maximum((now - batch.returns) ** 2, (near - batch.returns) ** 2)[on].sum() / count / 2
        value.backward()
        for model, optimizer in zip((self.actor, self.critic), self.optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return policy.item(), value.item()
