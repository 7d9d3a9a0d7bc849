"""How a reward model reads a rollout: as it has learnt to, with its own tokens and with the answer's end."""

from collections.abc import Sequence

from worker.pairs import answer_ids
from worker.rl.experience import Rolled
from worker.rl.prompts import PromptRow
from worker.rl.roles import RewardModel
from worker.scores import scores, token_rows


def by_model(
    model: RewardModel, rolled: Sequence[Rolled], rows: Sequence[PromptRow], texts: Sequence[str]
) -> list[float]:
    """The scores of a reward model, which reads an answer with its end, also where it was cut.

    `rows` are the prompts that were answered, `texts` the answers' words. Under ZeRO-3 all ranks call it.
    """
    if model.reads_ids:
        read = [[*a.prompt, *a.answer, *([] if a.ended else [model.end])] for a in rolled]
    else:
        read = [
            answer_ids(model.tokenizer, row.messages, text, model.end) for row, text in zip(rows, texts, strict=True)
        ]
    pad = model.tokenizer.pad_token_id
    assert isinstance(pad, int)
    found: list[float] = model.model.compute(token_rows(read, pad_id=pad), scores).tolist()
    return found[: len(rolled)]
