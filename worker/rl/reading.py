"""How a reward model reads a rollout: as it has learnt to, with its own tokens and with the answer's end."""

from collections.abc import Sequence

from jinja2 import TemplateError

from worker.dialogue import TemplateChanges
from worker.errors import BadData
from worker.pairs import answer_ids
from worker.rl.experience import Rolled
from worker.rl.prompts import PromptRow
from worker.rl.roles import RewardModel
from worker.scores import scores, token_rows


def by_model(
    model: RewardModel, rolled: Sequence[Rolled], rows: Sequence[PromptRow], texts: Sequence[str]
) -> list[float]:
    """The scores of a reward model, which reads an answer with its end, also where it was cut.

    A dialogue that is longer than the model reads loses its beginning.

    `rows` are the prompts that were answered, `texts` the answers' words. Under ZeRO-3 all ranks call it.
    """
    if model.reads_ids:
        # An answer may have ended by another token than the one that the model has learnt to be scored at.
        read = [[*a.prompt, *(a.answer[:-1] if a.ended else a.answer), model.end] for a in rolled]
    else:
        read = [
            answer_ids(model.tokenizer, row.messages, text, model.end) for row, text in zip(rows, texts, strict=True)
        ]
    pad = model.tokenizer.pad_token_id
    assert isinstance(pad, int)
    read = [ids[-model.limit :] for ids in read]
    found: list[float] = model.model.compute(token_rows(read, pad_id=pad), scores).tolist()
    return found[: len(rolled)]


def check_readable(model: RewardModel, rows: Sequence[PromptRow]) -> None:
    """Raises BadData for the first prompt that the model's chat template refuses: before anything is sampled."""
    if model.reads_ids:
        return
    for number, row in enumerate(rows, start=1):
        try:
            answer_ids(model.tokenizer, row.messages, "a", model.end)
        except (TemplateChanges, TemplateError) as error:
            raise BadData(f"prompt {number}: the chat template of {model.name} refuses it: {error}") from None
