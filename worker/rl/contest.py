"""A finished model's answers to a test set's prompts: what they are worth, and how often they win against another's."""

import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from worker.contract.rewards import ModelTerm, Reward
from worker.dialogue import answer_end
from worker.errors import BadSpec, Interrupted, Stopped
from worker.exam import MODEL, TEST, Exam
from worker.rl.experience import Rolled
from worker.rl.gathered import sample_sharded
from worker.rl.prompts import PromptRow, load_prompts, seeds
from worker.rl.reading import by_model, check_readable
from worker.rl.rewards import Terms, weighted, win_rate
from worker.rl.roles import RewardModel, ends_of, reading_limit, same_tokens
from worker.rl.rollout import Answer, sample
from worker.samples import chosen, shown

_AGAINST = "stage.against"
# The seeds of an iteration that no training has.
_STEP = 0


@dataclass(frozen=True)
class Answers:
    """One model's answers to all prompts."""

    rows: list[PromptRow]
    rolled: list[Rolled]
    texts: list[str]
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Worth:
    """What one model's answers are worth."""

    terms: dict[str, list[float]]
    rewards: list[float]


def of_prompts(exam: Exam) -> dict[str, float]:
    """`eval/reward`, `eval/length`, a curve for each term, and with `against` also `eval/win_rate`.

    Both models answer the same prompts by the same seeds. One model at a time is in memory, but for the reward models.
    """
    stage = exam.stage
    if stage.reward is None:
        raise BadSpec("stage.reward: is needed for rows of `{prompt}`: what is an answer worth?")
    terms = Terms(
        stage.reward,
        max_new_tokens=stage.rollout.max_new_tokens,
        between=exam.interruptible,
        tell=lambda said: exam.context.channel.event("RewardServiceAway", said, level="warning"),
    )
    ours = _answers(exam, MODEL, stage.model, terms)
    gc.collect()
    theirs = _answers(exam, _AGAINST, stage.against, terms) if stage.against is not None else None
    gc.collect()
    exam.context.channel.report("scoring")
    models = _reward_models(exam, stage.reward)
    worth = _worth(exam, stage.reward, terms, models, ours)
    metrics = {
        "eval/reward": fmean(worth.rewards),
        "eval/length": fmean(len(one.answer) for one in ours.rolled),
        **{f"reward/{title}": fmean(values) for title, values in worth.terms.items()},
    }
    if theirs is not None:
        other = _worth(exam, stage.reward, terms, models, theirs)
        metrics["eval/win_rate"] = win_rate(worth.rewards, other.rewards)
    _show(exam, ours, worth)
    return metrics


def _answers(exam: Exam, path: str, name: str, terms: Terms) -> Answers:
    """A model's answers to all prompts, in their order, on all ranks."""
    stage, channel = exam.stage, exam.context.channel
    with channel.working():
        model, tokenizer = exam.language_model(path, name)
        answer_end(tokenizer, name, path)
        room = stage.max_length - stage.rollout.max_new_tokens
        rows = load_prompts(
            exam.context.order.inputs[TEST], tokenizer, room=room, truncate=stage.data.truncate, path=TEST
        )
        terms.check(rows)
        asked = exam.frozen(model)
    same: dict[str, Any] = {"rollout": stage.rollout, "slots": stage.rollout.slots, "ends": ends_of(tokenizer)}
    same["pad_id"] = tokenizer.pad_token_id

    def answered(prompts: list[list[int]], seeds: list[int]) -> list[Answer]:
        if exam.context.order.spec.deepspeed.zero == 3:
            # On the shards, all ranks in step; here, none may leave before the others.
            asked_as_engine: Any = _AsEngine(asked)
            return sample_sharded(asked_as_engine, exam.ranks, prompts, seeds=seeds, between=channel.going_on, **same)
        return sample(model, prompts, seeds=seeds, device=exam.device, between=exam.interruptible, **same)

    channel.report("generating")
    rolled: list[Rolled] = []
    for start in range(0, len(rows), stage.rollout.prompts):
        chunk = list(range(start, min(start + stage.rollout.prompts, len(rows))))
        mine = chunk[exam.ranks.rank :: exam.ranks.world]
        rolled += _together(exam, rows, mine, answered)
    rolled.sort(key=lambda one: one.index)
    texts = [str(tokenizer.decode(one.answer, skip_special_tokens=True)) for one in rolled]
    return Answers(rows, rolled, texts, tokenizer)


def _together(
    exam: Exam,
    rows: Sequence[PromptRow],
    mine: Sequence[int],
    answered: Callable[[list[list[int]], list[int]], list[Answer]],
) -> list[Rolled]:
    """The answers of all ranks to a chunk of prompts, of which `mine` are this rank's. Raises Stopped."""
    prompts = [rows[at].ids.tolist() for at in mine]
    answers: list[Answer] = []
    with suppress(Interrupted):
        answers = answered(prompts, seeds(exam.stage.seed, _STEP, mine))
    # Who was interrupted was asked to stop, and so all stop here.
    if exam.ranks.agree_to_stop(exam.context.channel.stop) is not None:
        raise Stopped
    found = [
        Rolled(at, at, prompt, answer.ids, answer.ended)
        for at, prompt, answer in zip(mine, prompts, answers, strict=True)
    ]
    return exam.ranks.gather(found)


class _AsEngine:
    """A frozen model with the three things of an engine that sampling on shards asks for."""

    def __init__(self, frozen: Any):
        self.model, self.device, self.eval_micro = frozen.model, frozen.device, frozen.compute


def _reward_models(exam: Exam, reward: Reward) -> dict[str, RewardModel]:
    """The reward's models by their terms' names, on their engines; which tokens they read is settled later."""
    made = {}
    for number, term in enumerate(reward.terms):
        if not isinstance(term, ModelTerm):
            continue
        path = f"stage.reward.terms.{number}.model"
        with exam.context.channel.working():
            model, tokenizer = exam.reward_model(path, term.model)
            end = answer_end(tokenizer, term.model, path)
            limit = reading_limit(model, exam.stage.max_length)
            frozen = exam.frozen(model, term.deepspeed)
            made[term.title] = RewardModel(term.model, frozen, tokenizer, limit, False, end)
    return made


def _worth(exam: Exam, reward: Reward, terms: Terms, models: dict[str, RewardModel], answers: Answers) -> Worth:
    """What the answers are worth, the same on all ranks; each rank scores its share."""
    mine = list(range(exam.ranks.rank, len(answers.rolled), exam.ranks.world))
    read = {
        title: replace(model, reads_ids=same_tokens(answers.tokenizer, model.tokenizer))
        for title, model in models.items()
    }
    for model in read.values():
        check_readable(model, answers.rows)
    size = exam.stage.micro_batch
    found: list[tuple[int, dict[str, float]]] = []
    # As many on each rank; one that has none left asks about nothing, for the others' sake.
    for start in range(0, -(-len(answers.rolled) // exam.ranks.world), size):
        exam.between()
        places = mine[start : start + size]
        rolled = [answers.rolled[at] for at in places]
        rows, texts = [answers.rows[one.row] for one in rolled], [answers.texts[at] for at in places]
        scored = {title: by_model(model, rolled, rows, texts) for title, model in read.items()}
        if places:
            try:
                scored |= terms.score(rows, texts, [len(one.answer) for one in rolled])
            except Interrupted:
                continue  # to where all ranks agree on it
        found += [(at, {title: values[n] for title, values in scored.items()}) for n, at in enumerate(places)]
    exam.between()
    every = [one for _, one in sorted(exam.ranks.gather(found), key=lambda pair: pair[0])]
    by_term = {term.title: [one[term.title] for one in every] for term in reward.terms}
    return Worth(by_term, weighted(reward, by_term, [one.ended for one in answers.rolled]))


def _show(exam: Exam, answers: Answers, worth: Worth) -> None:
    """Shows people some of the answers, to the spec's budget."""
    for at in chosen(exam.stage.samples, step=1, steps=1, count=len(answers.rolled)):
        one = answers.rolled[at]
        exam.context.channel.sample(
            shown(
                step=1,
                index=at,
                prompt=answers.rows[one.row].text,
                answer=answers.texts[at],
                reward=worth.rewards[at],
                ended=one.ended,
                terms={title: values[at] for title, values in worth.terms.items()},
            )
        )
