"""Answers of the actor, sampled on all ranks side by side, in chunks; and those that are shown to people."""

from collections.abc import Sequence
from itertools import islice

from worker.contract.ppo import PpoStage
from worker.distributed import Ranks
from worker.rl.course import Course
from worker.rl.credit import Credit
from worker.rl.experience import Rolled
from worker.rl.gathered import gathered
from worker.rl.hand import Hand
from worker.rl.judge import Judge
from worker.rl.prompts import PromptRow, seeds
from worker.rl.roles import Roles
from worker.rl.rollout import sample
from worker.samples import chosen, shown

# Prompts of a chunk, for each slot: many, so that slots seldom idle at a chunk's end; few, so that little is lost.
_PER_SLOT = 4


class _Interrupted(Exception):
    """This rank was asked to stop. What all do about it they agree on at the chunk's end."""


class Sampled:
    """The actor's answers on one rank."""

    def __init__(self, stage: PpoStage, roles: Roles, ranks: Ranks, course: Course):
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
        with gathered(self._roles.actor.engine) as model:
            while stop is None and (chunk := list(islice(left, size))):
                try:
                    answers = sample(
                        model,
                        [prompts[row].ids.tolist() for _, row in chunk],
                        seeds=seeds(self._stage.seed, step, [index for index, _ in chunk]),
                        rollout=self._stage.rollout,
                        slots=self._stage.rollout.slots,
                        ends=self._roles.ends,
                        pad_id=self._roles.pad_id,
                        device=self._roles.actor.engine.device,
                        between=self._between,
                    )
                except _Interrupted:
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

    def _between(self) -> None:
        self._course.context.channel.going_on()
        if self._course.context.channel.stop is not None:
            raise _Interrupted

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
                    tokens=[str(tokenizer.decode([token])) for token in answer.answer],
                    kl=credit.kl[place, : len(answer.answer)].tolist(),
                )
            )
