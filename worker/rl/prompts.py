"""The prompts of a PPO: rows as token ids that end where the assistant's answer begins, and whose turn it is when."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from worker.contract.order import Input
from worker.contract.rows import Prompt, Said
from worker.data import read_rows, unchanged
from worker.dialogue import render
from worker.errors import BadData


@dataclass(frozen=True, eq=False)
class PromptRow:
    """One prompt. `ids` ends with the opening of the assistant's turn, if the tokenizer has a chat template."""

    ids: NDArray[np.int32]  # [time]
    messages: list[dict[str, str]]
    text: str
    """What is answered: the prompt itself, or the last turn's words."""
    answer: str | None
    """The right answer, where the row has one."""

    def __len__(self) -> int:
        return len(self.ids)


def load_prompts(
    source: Input, tokenizer: PreTrainedTokenizerBase, *, room: int, truncate: bool, path: str = "stage.data.prompts"
) -> list[PromptRow]:
    """A data file's prompts, in its order. Raises BadData, with the line where it can be told.

    `room` is how many tokens a prompt may have; a longer one is refused, or with `truncate` loses its beginning. The
    file must still have the hash that it had when the job was accepted.
    """
    place = unchanged(source)
    try:
        return _prompts(place, tokenizer, room, truncate)
    except BadData as error:
        raise BadData(f"{path}: {source.reference}: {error.message}") from None


def _prompts(place: Path, tokenizer: PreTrainedTokenizerBase, room: int, truncate: bool) -> list[PromptRow]:
    rows = []
    for line, row in read_rows(place, ("prompt",)):
        assert isinstance(row, Prompt)
        messages = as_messages(row.prompt)
        try:
            ids = prompt_ids(tokenizer, messages)
        except TemplateError as error:
            raise BadData(f"line {line}: the chat template refuses the prompt: {error}") from None
        if not ids:
            raise BadData(f"line {line}: the prompt has not one token")
        if len(ids) > room:
            if not truncate:
                raise BadData(
                    f"line {line}: {len(ids)} tokens are more than stage.max_length less "
                    f"stage.rollout.max_new_tokens, {room}; raise stage.max_length, or cut by stage.data.truncate"
                )
            ids = ids[len(ids) - room :]
        rows.append(PromptRow(np.array(ids, dtype=np.int32), messages, messages[-1]["content"], row.answer))
    if not rows:
        raise BadData("the file has no rows")
    return rows


def as_messages(prompt: Said) -> list[dict[str, str]]:
    """A prompt as turns of a dialogue: a text is a user's only turn."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": turn.role, "content": turn.content} for turn in prompt]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """The tokens that an answer follows. Without a chat template they are the words alone. Raises TemplateError."""
    if tokenizer.chat_template:
        ids = tokenizer(render(tokenizer, messages, answer_next=True), add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer("\n".join(turn["content"] for turn in messages))["input_ids"]
    assert isinstance(ids, list)
    return ids


def of_iteration(count: int, *, seed: int, step: int, prompts: int) -> list[int]:
    """Which of `count` rows are the `prompts` of iteration `step` (from 1): a pure function of seed and step.

    The rows are gone through in a new order each time round, without end; an iteration may lie across the seam.
    """
    first = (step - 1) * prompts
    return [int(_order(count, seed, at // count)[at % count]) for at in range(first, first + prompts)]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, 0x9909]).permutation(count)


def seeds(seed: int, step: int, indices: Sequence[int]) -> list[int]:
    """A seed for each prompt of an iteration, by its index in it: what is sampled for it depends on nothing else."""
    return [int(np.random.SeedSequence([seed, step, index]).generate_state(1, np.uint64)[0] >> 1) for index in indices]
