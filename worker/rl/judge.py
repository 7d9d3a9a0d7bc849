"""What the models and functions say of answers: log-probabilities, values and the terms of the reward."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from worker.contract.ppo import RlStage
from worker.errors import Interrupted, ServiceAway
from worker.logprobs import log_probabilities
from worker.rl.course import Course
from worker.rl.experience import Judged, Rolled, taken
from worker.rl.objectives import AnswerBatch, answer_batch
from worker.rl.prompts import PromptRow
from worker.rl.reading import by_model, check_readable
from worker.rl.rewards import Terms
from worker.rl.roles import Roles
from worker.scores import values


class Judge:
    """Judges answers of one rank. Models are asked about a group of answers at a time, on all ranks at once."""

    def __init__(self, roles: Roles, stage: RlStage, course: Course):
        """Raises BadSpec for a term that cannot be."""
        self._roles, self._course = roles, course
        self._temperature = stage.rollout.temperature
        self._terms = Terms(
            stage.reward,
            max_new_tokens=stage.rollout.max_new_tokens,
            between=course.interruptible,
            tell=lambda sentence: course.context.channel.event("RewardServiceAway", sentence, level="warning"),
        )
        self._pad = roles.pad_id

    def check(self, *prompts: Sequence[PromptRow]) -> None:
        """Raises BadData where a term needs what a row has not, or cannot read it."""
        for rows in prompts:
            self._terms.check(rows)
            for model in self._roles.rewards.values():
                check_readable(model, rows)

    def of(
        self,
        answers: Sequence[Rolled],
        prompts: Sequence[PromptRow],
        groups: Sequence[Sequence[int]],
        *,
        critic: bool = True,
    ) -> list[tuple[int, Judged]]:
        """What is made of the answers in `groups`: each a micro-batch of places among `answers`, as many on each rank.

        `prompts` are the rows that answers are of. Rows are grouped as they are trained, so that log-probabilities of
        then and now are computed on the same shapes, and the first ratio is exactly 1. Without `critic`, or where there
        is none, values are 0.
        """
        made = []
        for group in groups:
            self._course.between()
            rolled = [answers[place] for place in group]
            batch = answer_batch([a.prompt for a in rolled], [a.answer for a in rolled], pad_id=self._pad)
            starts, counts = [len(a.prompt) - 1 for a in rolled], [len(a.answer) for a in rolled]
            logprobs = self._roles.actor.engine.eval_micro(batch, self._policy)
            reference = self._roles.reference.compute(batch, self._policy)
            critics = self._roles.critic if critic else None
            valued = critics.engine.eval_micro(batch, values) if critics is not None else 0.0 * logprobs
            terms = self._by_models(rolled, prompts)
            each = zip(
                *(taken(found, starts, counts) for found in (logprobs, reference, valued)),
                [{title: found[number] for title, found in terms.items()} for number in range(len(group))],
                strict=True,
            )
            made += [(place, Judged(*found)) for place, found in zip(group, each, strict=True)]
        # All at once: a service is asked in batches of its own size.
        told = self._by_functions([answers[place] for place, _ in made], prompts)
        return [
            (place, replace(judged, terms=judged.terms | {title: scores[number] for title, scores in told.items()}))
            for number, (place, judged) in enumerate(made)
        ]

    def _policy(self, model: nn.Module, batch: AnswerBatch) -> Tensor:
        return log_probabilities(model, batch, self._temperature)

    def _by_models(self, rolled: Sequence[Rolled], prompts: Sequence[PromptRow]) -> dict[str, list[float]]:
        """The terms that reward models tell, by their names."""
        rows, texts = [prompts[a.row] for a in rolled], self.texts(rolled)
        return {title: by_model(model, rolled, rows, texts) for title, model in self._roles.rewards.items()}

    def _by_functions(self, rolled: Sequence[Rolled], prompts: Sequence[PromptRow]) -> dict[str, list[float]]:
        """The terms that need no model, by their names. Raises Stopped, ServiceAway, after saving."""
        rows, counts = [prompts[a.row] for a in rolled], [len(a.answer) for a in rolled]
        found: dict[str, list[float]] = {}
        away: ServiceAway | None = None
        # While one rank waits for a service the others wait for it: they agree on what to do once it has done.
        try:
            found = self._terms.score(rows, self.texts(rolled), counts)
        except Interrupted:
            pass
        except ServiceAway as error:
            away = error
        if self._terms.waits:
            self._course.after_waiting(away)
        return found

    def texts(self, rolled: Sequence[Rolled]) -> list[str]:
        """The answers' words, without the token that ends them."""
        tokenizer = self._roles.tokenizer
        return [str(tokenizer.decode(a.answer, skip_special_tokens=True)) for a in rolled]
