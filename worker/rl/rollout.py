"""Answers to many prompts, sampled side by side; a finished answer leaves its slot to the next prompt that waits.

`generate` steps a batch until its longest answer is done, and answers' lengths spread widely: most of its rows idle
most of the time. Here every row of every step is an answer at work. The order is fixed by the lengths alone, and each
prompt has random numbers of its own, so the same call gives the same answers.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from worker.contract.ppo import Rollout
from worker.rl.sampling import Sampling, next_tokens, uniforms
from worker.rl.slots import Slots, check_cache

Forward = Callable[..., Tensor]
"""The model's logits for the last position, [rows, vocabulary], by what transformers' models take."""

# Prompts are read together where the longest has at most twice the tokens of the shortest, or this many more.
_LITTLE_PADDING = 16
# Positions of one reading of prompts, at most (but one prompt at least): what bounds its memory.
_AT_ONCE = 8192


@dataclass(frozen=True)
class Answer:
    """What was sampled for one prompt."""

    ids: list[int]
    """Tokens, with the one that ended it."""
    ended: bool
    """Whether it ended by itself, and not at the limit of new tokens."""


@dataclass
class _Row:
    """An answer at work."""

    prompt: int  # its place among the prompts
    uniforms: Tensor  # one for each of its tokens, at most
    ids: list[int] = field(default_factory=list)


def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    rollout: Rollout,
    slots: int,
    ends: frozenset[int],
    pad_id: int,
    device: torch.device,
    between: Callable[[], None] = lambda: None,
    greedy: bool = False,
    limits: Sequence[int] | None = None,
) -> list[Answer]:
    """An answer to every prompt (token ids), in their order.

    `model` is a transformers causal language model, wrapped by peft or not, in eval mode and whole on `device`. A
    token of `ends` ends an answer, `rollout.max_new_tokens` at the latest; `pad_id` may be any token. `slots` answers
    are sampled side by side. `between` is called before every forward pass, whose number differs between ranks; what
    it raises passes through. `greedy` takes the likeliest tokens, and no account of seeds, temperature and top_p.
    `limits` are the most tokens of each answer, where they are not `rollout.max_new_tokens` for all.

    Raises BadSpec for models that keep more than keys and values of full attention, Diverged where logits are no
    numbers.
    """
    if model.training:
        raise ValueError("a rollout is of a model in eval mode")
    check_cache(bare(model), max(map(len, prompts), default=0) + rollout.max_new_tokens)

    def forward(**inputs: Any) -> Tensor:
        between()
        return last_logits(model, **inputs)

    sampler = Sampler(forward, rollout, slots, ends, pad_id, device, greedy)
    with torch.no_grad():
        return sampler.answers(prompts, seeds, limits)


def bare(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside peft's wrapping."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def last_logits(model: nn.Module, **inputs: Any) -> Tensor:
    """The logits of the last position alone, [rows, vocabulary]."""
    logits: Tensor = model(use_cache=True, logits_to_keep=1, **inputs).logits
    return logits[:, -1]


@dataclass
class Sampler:
    """The loop that samples, whatever computes the logits."""

    forward: Forward
    rollout: Rollout
    slots: int
    ends: frozenset[int]
    pad_id: int
    device: torch.device
    greedy: bool = False

    def __post_init__(self) -> None:
        self._sampling = Sampling.of(self.rollout, greedy=self.greedy)
        self._ends = torch.tensor(sorted(self.ends), dtype=torch.long, device=self.device)

    def answers(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], limits: Sequence[int] | None = None
    ) -> list[Answer]:
        """An answer to every prompt, in their order."""
        if len(seeds) != len(prompts) or not all(map(len, prompts)):
            raise ValueError("every prompt has a seed and at least one token")
        limits = limits or [self.rollout.max_new_tokens] * len(prompts)
        waiting = deque(range(len(prompts)))
        rows: list[_Row] = []
        done: dict[int, Answer] = {}
        # An answer's last token is never read.
        longest = max((len(prompt) + limit - 1 for prompt, limit in zip(prompts, limits, strict=True)), default=0)
        cache = Slots(self.slots, longest, self.device)
        while waiting or rows:
            free = min(self.slots - len(rows), len(waiting))
            if free and free >= min(len(waiting), self._refill_at):
                new = [waiting.popleft() for _ in range(free)]
                for group in _alike(new, prompts):
                    logits = self._read([prompts[at] for at in group], cache)
                    fresh = [_Row(at, uniforms(seeds[at], limits[at])) for at in group]
                    self._extend(fresh, logits)
                    rows += fresh
            else:
                self._extend(rows, self._step(rows, cache))
            # From the last on, so that the row that moves into a place has been looked at.
            for at in reversed(range(len(rows))):
                ended = rows[at].ids[-1] in self.ends
                if ended or len(rows[at].ids) == limits[rows[at].prompt]:
                    done[rows[at].prompt] = Answer(rows[at].ids, ended)
                    rows[at] = rows[-1]
                    rows.pop()
                    cache.drop(at)
        return [done[at] for at in range(len(prompts))]

    @property
    def _refill_at(self) -> int:
        """Free slots at which waiting prompts are read.

        To read two together costs less than one after the other, and a slot that waits costs little for a step or two.
        """
        return max(1, self.slots // 8)

    def _read(self, prompts: list[Sequence[int]], cache: Slots) -> Tensor:
        """Reads prompts into free slots. Gives the logits of what follows, [prompts, vocabulary]."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        # Padded on the left, so that every model's last position is the prompts' own last.
        padded = [[self.pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        ids = torch.tensor(padded, device=self.device)
        place = torch.arange(longest, device=self.device) - torch.tensor(
            [longest - length for length in lengths], device=self.device
        ).unsqueeze(1)
        read = DynamicCache()
        logits = self.forward(
            input_ids=ids,
            attention_mask=(place >= 0).long(),
            position_ids=place.clamp(min=0),
            past_key_values=read,
        )
        cache.append(read, lengths)
        return logits

    def _step(self, rows: list[_Row], cache: Slots) -> Tensor:
        """One token more of every row. Gives the logits of the next, [rows, vocabulary]."""
        last = torch.tensor([[row.ids[-1]] for row in rows], device=self.device)
        positions, mask = cache.open()
        return self.forward(input_ids=last, attention_mask=mask, position_ids=positions, past_key_values=cache)

    def _extend(self, rows: list[_Row], logits: Tensor) -> None:
        """Draws a token for every row."""
        uniform = torch.stack([row.uniforms[len(row.ids)] for row in rows]).to(self.device)
        early = [len(row.ids) < self.rollout.min_new_tokens for row in rows]
        barred = None
        if any(early) and len(self._ends):
            barred = torch.zeros_like(logits, dtype=torch.bool)
            barred[:, self._ends] = torch.tensor(early, device=self.device)[:, None]
        for row, token in zip(rows, next_tokens(logits, uniform, self._sampling, barred).tolist(), strict=True):
            row.ids.append(token)


def _alike(new: list[int], prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Prompts of like lengths, to be read together: the shortest first, and in their order where lengths are equal."""
    group: list[int] = []
    for at in sorted(new, key=lambda at: len(prompts[at])):
        length = len(prompts[at])
        shortest = len(prompts[group[0]]) if group else length
        if length > max(2 * shortest, shortest + _LITTLE_PADDING) or length * (len(group) + 1) > _AT_ONCE:
            if group:
                yield group
            group = []
        group.append(at)
    if group:
        yield group
