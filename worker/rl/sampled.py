"""Answers of the actor, sampled on all ranks side by side, in chunks; and those that are shown to people."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from worker.contract.ppo import RlStage
from worker.distributed import Ranks
from worker.errors import Interrupted
from worker.rl.course import Course
from worker.rl.credit import Credit
from worker.rl.experience import Rolled
from worker.rl.gathered import gathered, sample_sharded, whole_fits
from worker.rl.hand import Hand
from worker.rl.judge import Judge
from worker.rl.prompts import PromptRow, seeds
from worker.rl.roles import Roles
from worker.rl.rollout import Answer, bare, sample
from worker.samples import chosen, pieces, shown

# Prompts of a chunk, for each slot: many, so that slots seldom idle at a chunk's end; few, so that little is lost.
_PER_SLOT = 4


class Sampled:
    """The actor's answers on one rank."""

    def __init__(self, stage: RlStage, roles: Roles, ranks: Ranks, course: Course):
        self._stage, self._roles, self._ranks, self._course = stage, roles, ranks, course

    def answer(
        self, prompts: Sequence[PromptRow], todo: Sequence[tuple[int, int]], *, step: int, into: list[Rolled]
    ) -> None:
        """Adds to `into` an answer for each (index, row) of `todo`, as many on each rank, chunk by chunk.

        What is sampled depends on the prompt, its index, the step and the seed, and on the chunk it is in. Raises
        Stopped where that was asked for; finished chunks are kept.
        """
        size = _PER_SLOT * self._stage.rollout.slots
        left = iter(todo)
        stop = self._course.asked_to_stop()
        with self._sampler() as answered:
            while stop is None and (chunk := list(islice(left, size))):
                try:
                    answers = answered(
                        [prompts[row].ids.tolist() for _, row in chunk],
                        seeds(self._stage.seed, step, [index for index, _ in chunk]),
                    )
                except Interrupted:
                    answers = []
                into += [
                    Rolled(index, row, prompts[row].ids.tolist(), answer.ids, answer.ended)
                    for (index, row), answer in zip(chunk, answers, strict=bool(answers))
                ]
                stop = self._course.asked_to_stop()
        if stop is not None:
            # Not all ranks may have come to the chunk's end: what one has to make again, all make again.
            del into[min(self._ranks.gather([len(into)])) :]
            self._course.stop(stop)

    @contextmanager
    def _sampler(self) -> Iterator[Callable[[list[list[int]], list[int]], list[Answer]]]:
        """A block with a function that answers prompts by their seeds, on all ranks at once."""
        engine, rollout = self._roles.actor.engine, self._stage.rollout
        same: dict[str, Any] = {"rollout": rollout, "slots": rollout.slots, "ends": self._roles.ends}
        same["pad_id"] = self._roles.pad_id
        if self._sharded():
            alive = self._course.context.channel.going_on
            yield lambda prompts, seeds: sample_sharded(
                engine, self._ranks, prompts, seeds=seeds, between=alive, **same
            )
            return
        with gathered(engine) as model:
            yield lambda prompts, seeds: sample(
                model, prompts, seeds=seeds, device=engine.device, between=self._course.interruptible, **same
            )

    def _sharded(self) -> bool:
        """Whether to sample on the sharded model; the same on all ranks."""
        engine, wanted = self._roles.actor.engine, self._stage.rollout.sharded
        if engine.zero != 3 or wanted != "auto":
            return engine.zero == 3 and wanted == "always"
        config = bare(engine.model).config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        a_token = 2 * config.num_hidden_layers * heads * size * 4
        return not whole_fits(engine, self._ranks, a_token * self._stage.rollout.slots * self._stage.max_length)

    def show(self, hand: Hand, credit: Credit, prompts: Sequence[PromptRow], judge: Judge) -> None:
        """Shows people some of an iteration's answers, to the spec's budget."""
        if self._ranks.rank != 0:
            return
        tokenizer = self._roles.tokenizer
        which = chosen(self._stage.samples, step=hand.step, steps=self._stage.steps, count=len(hand.everyone))
        answers = [hand.everyone[place] for place in which]
        for place, answer, text in zip(which, answers, judge.texts(answers), strict=True):
            judged = hand.judged[place]
            self._course.context.channel.sample(
                shown(
                    step=hand.step,
                    index=answer.index,
                    prompt=prompts[answer.row].text,
                    answer=text,
                    reward=judged.reward,
                    ended=answer.ended,
                    terms=judged.terms,
                    tokens=pieces(tokenizer.decode, answer.answer),
                    kl=credit.kl[place, : len(answer.answer)].tolist(),
                )
            )
