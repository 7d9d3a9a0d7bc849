"""A dialogue as text: what its chat template makes of it, and which part of that the model learns to say.

Few templates mark the assistant's turns, so they are found by prefixes: a turn is what the text with it has more than
the text before it, the opening of the turn counted to the latter. That holds only for a template which leaves what it
has written; one that changes its own prefix is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from worker.contract.rows import Turn
from worker.errors import BadSpec

CHATML = (Path(__file__).parent / "templates" / "chatml.jinja").read_text(encoding="utf-8").rstrip("\n")
"""The template of models from scratch. It inserts nothing, and what it has written it leaves."""


class TemplateChanges(ValueError):
    """A template whose text for a dialogue does not begin with its text for the dialogue's first turns."""


@dataclass(frozen=True)
class Rendered:
    """A dialogue's text, and the spans of it that are trained: (first character, past the last one)."""

    text: str
    spans: list[tuple[int, int]]


def check_template(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Raises BadSpec if a tokenizer cannot make dialogues into tokens and say where each token came from."""
    if not tokenizer.chat_template:
        raise BadSpec(
            f"stage.model: {model} has no chat template, so it cannot be trained on dialogues; "
            "use an instruct model, or pretrain on text"
        )
    if not tokenizer.is_fast:
        raise BadSpec(f"stage.model: the tokenizer of {model} tells no offsets; a tokenizer.json is needed")


def render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, answer_next: bool = False) -> str:
    """The text of `turns`; with `answer_next` also the opening of the assistant's next turn."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next)
    assert isinstance(text, str)
    return text


def rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Turn]) -> Rendered:
    """A dialogue as text with its trained spans, each up to the token that ends the turn.

    Raises TemplateChanges, and TemplateError for a dialogue that the template itself refuses (its order of roles, say).
    """
    turns = [{"role": turn.role, "content": turn.content} for turn in messages]
    text = render(tokenizer, turns)
    spans = []
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        after = text if index == len(turns) - 1 else render(tokenizer, turns[: index + 1])
        if not text.startswith(after):
            raise TemplateChanges(f"the text of the first {index + 1} turns changes when more turns follow")
        spans.append((_opening(tokenizer, turns, index, after), _closing(tokenizer, after)))
    return Rendered(text, spans)


def answered(tokenizer: PreTrainedTokenizerBase, messages: list[Turn], answer: str) -> tuple[str, str]:
    """(the prompt, up to the opening of the assistant's turn; the answer, up to the token that ends the turn).

    What the template makes of the answer's words is kept (some strip blanks off), as in training on dialogues. Raises
    TemplateChanges, and TemplateError for a prompt that the template itself refuses.
    """
    turns = [{"role": turn.role, "content": turn.content} for turn in messages]
    prompt = render(tokenizer, turns, answer_next=True)
    whole = render(tokenizer, [*turns, {"role": "assistant", "content": answer}])
    if not whole.startswith(prompt):
        raise TemplateChanges("the prompt is not what stands before its answer in the dialogue")
    return prompt, whole[len(prompt) : max(len(prompt), _closing(tokenizer, whole))]


def _opening(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], index: int, after: str) -> int:
    """Where the assistant's own words begin: behind everything that the prompt for this turn holds."""
    if index:
        before = render(tokenizer, turns[:index], answer_next=True)
    else:
        # Without any turn before it, templates insert no default system prompt: take the opening by itself.
        opening = render(tokenizer, turns[:1], answer_next=True)[len(after) :]
        before = after[: after.index(opening) + len(opening)] if opening and opening in after else "\x00"
    if not after.startswith(before):
        raise TemplateChanges(f"the prompt for turn {index + 1} is not what stands before the answer in the dialogue")
    return len(before)


def _closing(tokenizer: PreTrainedTokenizerBase, after: str) -> int:
    """Past the token that ends the turn. A newline behind it is the template's, and never generated."""
    stripped = after.rstrip()
    return len(stripped) if stripped.endswith(_special(tokenizer)) else len(after)


def _special(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple({*tokenizer.all_special_tokens, *added})


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the token that ends an assistant's turn, at which generation stops; None: the template has none."""
    if not tokenizer.chat_template:
        return None
    try:
        text = render(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]).rstrip()
    except TemplateError:
        return None
    ends = [token for token in _special(tokenizer) if text.endswith(token)]
    found: Any = tokenizer.convert_tokens_to_ids(max(ends, key=len)) if ends else None
    return found


def answer_end(tokenizer: PreTrainedTokenizerBase, model: str, path: str = "stage.model") -> int:
    """The id of the token that every whole answer ends with: the one that ends a turn, or else a text. Raises BadSpec.

    A rollout ends with it, and nothing follows: ChatML's newline behind it is the template's alone.
    """
    end = turn_end(tokenizer)
    if end is None:
        end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise BadSpec(f"{path}: the tokenizer of {model} has no token that ends a turn or a text (eos_token)")
    return end
