"""Reinforcement learning from a reward, one iteration after the other; an iteration is one step of the job:

    roll out   the actor answers prompts                                                    worker/rl/rollout.py
    judge      actor, reference, critic and reward say what they make of each answer         worker/rl/judge.py
    credit     what each token was worth: the method's own                                   worker/stages
    learn      updates of what is trained, over epochs and minibatches: the method's own     worker/stages

All ranks hold the whole iteration, and do their share of each part; what they compute of it together is the same for
any number of them. What happens around an iteration (going on, stopping, saving, telling) is `worker/rl/course.py`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from worker.context import Context
from worker.contract.ppo import RlStage
from worker.contract.protocol import Output
from worker.distributed import Ranks, check_accelerator
from worker.engine import Engine
from worker.memory import explained
from worker.rl import tally
from worker.rl.course import Course, Kept
from worker.rl.credit import Credit
from worker.rl.experience import Rolled, by_term, minibatches, padded, shares
from worker.rl.hand import Hand
from worker.rl.held_out import HeldOut, Opening
from worker.rl.judge import Judge
from worker.rl.lookout import Lookout
from worker.rl.material import Material, prepare
from worker.rl.objectives import AnswerBatch, answer_batch
from worker.rl.preflight import preflight
from worker.rl.prompts import of_iteration
from worker.rl.rewards import scaled, weighted
from worker.rl.roles import Learner, Roles, load_roles
from worker.rl.sampled import Sampled
from worker.rl.statistics import RunningStatistics
from worker.schedule import learning_rate
from worker.state import seed_everything
from worker.stopwatch import Stopwatch

Stage = TypeVar("Stage", bound=RlStage)


def learn_by(method: "type[Iterations[Any]]", context: Context) -> list[Output]:
    """Trains the spec's models by a method. Gives the outputs on rank 0. Raises WorkerFailure."""
    spec = context.order.spec
    assert isinstance(spec.stage, RlStage)
    check_accelerator(spec)
    ranks = Ranks(context.rank, context.world)
    with context.channel.working():
        roles = load_roles(context)
        material = prepare(context, roles)
        seed_everything(spec.stage.seed, context.rank)
        made = method(context, ranks, roles, material)
    return made.run()


class Iterations(ABC, Generic[Stage]):
    """One rank's part, from the first iteration to the outputs."""

    stage: Stage

    def __init__(self, context: Context, ranks: Ranks, roles: Roles, material: Material):
        self.spec, self.stage = context.order.spec, context.order.spec.stage  # type: ignore[assignment]
        self.ranks, self.roles, self.material = ranks, roles, material
        self.seen = RunningStatistics()
        self.lookout = Lookout(self.stage.guards, roles)
        opening = Opening()
        kept: dict[str, Kept] = {"rewards": self.seen, "guards": self.lookout, "opening": opening, **self.kept()}
        self.course = Course(context, roles, ranks, kept, material.hash)
        self.sampled = Sampled(self.stage, roles, ranks, self.course)
        self.judge = Judge(roles, self.stage, self.course)
        self.judge.check(material.prompts, material.held_out)
        self.held_out = HeldOut(self.spec, material.held_out, self.sampled, self.judge, ranks, opening)

    # The method's own

    def kept(self) -> Mapping[str, Kept]:
        """What it keeps from iteration to iteration, beside what all do."""
        return {}

    @abstractmethod
    def credit(self, hand: Hand) -> Credit:
        """What each token was worth. Tensors are [answers, tokens of the longest]; all ranks compute the same."""

    @abstractmethod
    def update(self, hand: Hand, credit: Credit, rows: Sequence[int], update: int) -> dict[str, float]:
        """One update by the answers at `rows`. Gives what it measured, over all ranks."""

    @abstractmethod
    def worthless(self, batch: AnswerBatch) -> list[tuple[Engine, Any]]:
        """What each engine learns from, of answers that have been worth nothing."""

    @property
    def coef(self) -> float:
        """The price of a nat of KL in this iteration."""
        return 0.0

    def concluded(self, hand: Hand, metrics: dict[str, float]) -> None:
        """After an iteration: what it keeps follows it."""

    # The iterations

    def run(self) -> list[Output]:
        """Goes on from where the course is, to the end."""
        self.course.begin()
        if self.course.step < self.stage.steps:
            preflight(self.spec, self.roles, self.material.prompts, self.worthless)
            self.lookout.begin()
        self._evaluate_if_due()
        while self.course.step < self.stage.steps:
            self._iterate()
            self._evaluate_if_due()
            if self.course.step % self.spec.checkpoint.every_steps == 0:
                self.course.save(must=False)
        return self.course.hand_over()

    def _iterate(self) -> None:
        """One iteration, or what is left of the one in hand."""
        hand = self.course.hand = self.course.hand or Hand(step=self.course.step + 1)
        watch = Stopwatch(self.roles.actor.engine.settle, hand.seconds)
        if not hand.judged:
            with watch("generate"), explained(self.spec, f"sampling {self.stage.rollout.slots} answers at a time"):
                self._roll_out(hand)
            with watch("score"), explained(self.spec, "judging the answers"):
                self._judge(hand)
        credit = self.credit(hand)
        with watch("update"), explained(self.spec, f"step {hand.step}"):
            self._learn(hand, credit)
        self._conclude(hand, credit)

    def _roll_out(self, hand: Hand) -> None:
        """Answers to this rank's share of the iteration's prompts, chunk by chunk: a finished one is never lost."""
        count, each = self.stage.rollout.prompts, self.stage.answers_a_prompt
        rows = of_iteration(len(self.material.prompts), seed=self.stage.seed, step=hand.step, prompts=count)
        mine = [(index, rows[index // each]) for index in range(self.ranks.rank, count * each, self.ranks.world)]
        self.course.context.channel.report("generating")
        self.sampled.answer(self.material.prompts, mine[len(hand.rolled) :], step=hand.step, into=hand.rolled)

    def _judge(self, hand: Hand) -> None:
        """What is made of all answers. Each rank judges those that it trains on first, in the same micro-batches."""
        self.course.context.channel.report("scoring")
        everyone = sorted(self.ranks.gather(hand.rolled), key=lambda answer: answer.index)
        groups = [group for rows in self._minibatches(hand, 0, len(everyone)) for group in self.share(rows, everyone)]
        judged = dict(self.ranks.gather(self.judge.of(everyone, self.material.prompts, groups)))
        ordered = [judged[place] for place in range(len(everyone))]
        rewards = weighted(self.stage.reward, by_term(ordered), [answer.ended for answer in everyone])
        self.seen.update(rewards)
        scores = scaled(self.stage.reward, rewards, self.seen)
        hand.everyone = everyone
        hand.judged = [
            replace(one, reward=reward, score=score)
            for one, reward, score in zip(ordered, rewards, scores, strict=True)
        ]

    def _learn(self, hand: Hand, credit: Credit) -> None:
        """Updates: `epochs` passes over the answers, each in `minibatches` parts of a new order."""
        passes = self.stage.passes
        self.course.context.channel.report("training")
        for number in range(hand.updates, passes.epochs * passes.minibatches):
            epoch, part = divmod(number, passes.minibatches)
            rows = self._minibatches(hand, epoch, len(hand.everyone))[part]
            measured = self.update(hand, credit, rows, number)
            hand.tally.append(measured)
            hand.updates = number + 1

    def _conclude(self, hand: Hand, credit: Credit) -> None:
        """Ends an iteration: what follows it does, and it is told."""
        lr = self._lr(self.roles.actor, hand.step)
        metrics = tally.metrics(hand, credit, stage=self.course.kind, coef=self.coef, lr=lr)
        self.concluded(hand, metrics)
        if self.course.ema is not None:
            self.course.ema.update()
        tokens = sum(len(answer.answer) for answer in hand.everyone)
        self.course.done(hand, tokens)
        self.course.report(metrics, speed=tokens / max(1e-9, sum(hand.seconds.values())))
        self.sampled.show(hand, credit, self.material.prompts, self.judge)
        self.lookout.look(self.course, metrics)

    def _evaluate_if_due(self) -> None:
        """Evaluates before the first step, every so many and after the last; each step once, over all attempts."""
        step, settings = self.course.step, self.spec.evaluate
        every = settings.every_steps if settings else None
        due = step in (0, self.stage.steps) or (every is not None and step % every == 0)
        if not self.material.held_out or not due or self.course.evaluated == step or self.course.hand is not None:
            return
        metrics, found = self.held_out.evaluate(step)
        self.course.evaluated = step
        self.course.report(metrics)
        self.lookout.held_out(self.course, found)

    # What updates are made of

    def step(self, learner: Learner, hand: Hand, name: str) -> float:
        """Steps one engine, which clips its own gradient. Gives its norm before that."""
        norm = learner.engine.step(self._lr(learner, hand.step))
        if not math.isfinite(norm):
            raise self.course.diverged(f"the gradient's norm of the {name} in step {hand.step} is {norm}")
        return norm

    def check_losses(self, told: Mapping[str, float], hand: Hand, update: int) -> None:
        """Looks before the step, so that not even this process has weights that are no numbers. Raises Diverged."""
        for name in ("policy_loss", "value_loss"):
            if not math.isfinite(told.get(name, 0.0)):
                raise self.course.diverged(f"the {name.replace('_', ' ')} of step {hand.step} is {told[name]}")
        if update == 0:
            self.lookout.first_ratio(self.course, hand.step, told["ratio_error"])

    def batch_of(self, hand: Hand, group: Sequence[int], **numbers: Tensor) -> tuple[AnswerBatch, dict[str, Tensor]]:
        """A micro-batch of answers, prompts with them, and numbers of their tokens where these are: [rows, time].

        `numbers` are [answers, tokens of the longest].
        """
        answers = [hand.everyone[row] for row in group]
        batch = answer_batch([a.prompt for a in answers], [a.answer for a in answers], pad_id=self.roles.pad_id)
        starts = [len(a.prompt) - 1 for a in answers]
        shape = (batch.input_ids.shape[0], batch.input_ids.shape[1])

        def placed(tokens: Tensor) -> Tensor:
            rows = [tokens[row, : len(a.answer)].numpy() for row, a in zip(group, answers, strict=True)]
            return padded(rows, shape, starts)

        return batch, {name: placed(tokens) for name, tokens in numbers.items()}

    def share(self, rows: Sequence[int], answers: Sequence[Rolled]) -> list[list[int]]:
        """This rank's micro-batches of the answers at `rows`, as many on each rank."""
        lengths = [len(answer) for answer in answers]
        return shares(rows, lengths, rank=self.ranks.rank, world=self.ranks.world, micro_batch=self.spec.micro_batch)

    def _minibatches(self, hand: Hand, epoch: int, count: int) -> list[list[int]]:
        parts = self.stage.passes.minibatches
        return minibatches(count, parts=parts, seed=self.stage.seed, step=hand.step, epoch=epoch)

    def _lr(self, learner: Learner, step: int) -> float:
        return learning_rate(step, peak=learner.peak_lr, steps=self.stage.steps, optimizer=learner.optimizer)
