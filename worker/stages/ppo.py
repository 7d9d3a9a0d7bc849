"""Proximal policy optimization from a reward (Schulman et al., 2017; Ziegler et al., 2019; Ouyang et al., 2022).

One iteration, which is one step of the job:

    roll out   the actor answers prompts                                                    worker/rl/rollout.py
    judge      actor, reference, critic and reward say what they make of each answer         worker/rl/judge.py
    credit     the reward and the price of the KL become advantages and returns of tokens    worker/rl/advantages.py
    learn      clipped updates of actor and critic, over epochs and minibatches              worker/rl/objectives.py

All ranks hold the whole iteration, and do their share of each part; what they compute of it together is the same for
any number of them. What happens around an iteration (going on, stopping, saving, telling) is `worker/rl/course.py`.
docs/ppo.md reads this file against the papers.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from worker.context import Context
from worker.contract.ppo import PpoStage
from worker.contract.protocol import Output
from worker.distributed import Ranks, check_accelerator
from worker.memory import explained
from worker.rl import tally
from worker.rl.advantages import gae, token_rewards, whiten
from worker.rl.course import Course, Kept
from worker.rl.credit import Credit
from worker.rl.experience import Rolled, by_term, minibatches, padded, shares
from worker.rl.hand import Hand
from worker.rl.held_out import HeldOut, Opening
from worker.rl.judge import Judge
from worker.rl.kl import AdaptiveKl, k1
from worker.rl.lookout import Lookout
from worker.rl.material import Material, prepare
from worker.rl.objectives import PolicyBatch, ValueBatch, answer_batch
from worker.rl.preflight import preflight
from worker.rl.prompts import of_iteration
from worker.rl.rewards import scaled, weighted
from worker.rl.roles import Learner, Roles, load_roles
from worker.rl.sampled import Sampled
from worker.rl.statistics import RunningStatistics
from worker.schedule import learning_rate
from worker.state import seed_everything
from worker.stopwatch import Stopwatch


def run(context: Context) -> list[Output]:
    """Trains the spec's actor and critic. Gives the outputs on rank 0. Raises WorkerFailure."""
    spec = context.order.spec
    assert isinstance(spec.stage, PpoStage)
    check_accelerator(spec)
    ranks = Ranks(context.rank, context.world)
    with context.channel.working():
        roles = load_roles(context)
        material = prepare(context, roles)
        seed_everything(spec.stage.seed, context.rank)
        ppo = Ppo(context, ranks, roles, material)
    return ppo.run()


class Ppo:
    """One rank's part of a PPO, from its first iteration to its outputs."""

    def __init__(self, context: Context, ranks: Ranks, roles: Roles, material: Material):
        stage = context.order.spec.stage
        assert isinstance(stage, PpoStage)
        self.spec, self.stage, self.ppo = context.order.spec, stage, stage.ppo
        self.ranks, self.roles, self.material = ranks, roles, material
        self.kl = AdaptiveKl.of(stage.ppo.kl)
        self.seen = RunningStatistics()
        self.lookout = Lookout(stage.guards, roles)
        opening = Opening()
        kept: dict[str, Kept] = {"kl": self.kl, "rewards": self.seen, "guards": self.lookout, "opening": opening}
        self.course = Course(context, roles, ranks, kept, material.hash)
        self.sampled = Sampled(stage, roles, ranks, self.course)
        self.judge = Judge(roles, stage, self.course)
        self.judge.check(material.prompts, material.held_out)
        self.held_out = HeldOut(self.spec, material.held_out, self.sampled, self.judge, ranks, opening)

    def run(self) -> list[Output]:
        """Goes on from where the course is, to the end."""
        self.course.begin()
        if self.course.step < self.stage.steps:
            preflight(self.spec, self.roles, self.material.prompts)
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
        credit = self._credit(hand)
        with watch("update"), explained(self.spec, f"step {hand.step}"):
            self._learn(hand, credit)
        self._conclude(hand, credit)

    # roll out ---------------------------------------------------------------------------------------------------------

    def _roll_out(self, hand: Hand) -> None:
        """Answers to this rank's share of the iteration's prompts, chunk by chunk: a finished one is never lost."""
        count = self.stage.rollout.prompts
        rows = of_iteration(len(self.material.prompts), seed=self.stage.seed, step=hand.step, prompts=count)
        mine = [(index, rows[index]) for index in range(self.ranks.rank, count, self.ranks.world)]
        self.course.context.channel.report("generating")
        self.sampled.answer(self.material.prompts, mine[len(hand.rolled) :], step=hand.step, into=hand.rolled)

    # judge ------------------------------------------------------------------------------------------------------------

    def _judge(self, hand: Hand) -> None:
        """What is made of all answers. Each rank judges those that it trains on first, in the same micro-batches."""
        self.course.context.channel.report("scoring")
        everyone = sorted(self.ranks.gather(hand.rolled), key=lambda answer: answer.index)
        groups = [group for rows in self._minibatches(hand, 0, len(everyone)) for group in self._share(rows, everyone)]
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

    # credit -----------------------------------------------------------------------------------------------------------

    def _credit(self, hand: Hand) -> Credit:
        """What each token was worth. Tensors are [answers, tokens of the longest]; all ranks compute the same."""
        told = Credit.of(hand.judged)
        kl = k1(told.logprobs - told.reference)
        rewards = token_rewards(told.scores, kl, self.kl.coef, told.mask)
        advantages, returns = gae(rewards, told.values, told.mask, self.ppo.gamma, self.ppo.lam)
        if self.ppo.whiten:
            advantages = whiten(advantages, told.mask)
        return replace(told, kl=kl, advantages=advantages, returns=returns)

    # learn ------------------------------------------------------------------------------------------------------------

    def _learn(self, hand: Hand, credit: Credit) -> None:
        """Clipped updates: `epochs` passes over the answers, each in `minibatches` parts of a new order."""
        self.course.context.channel.report("training")
        for update in range(hand.updates, self.ppo.epochs * self.ppo.minibatches):
            epoch, part = divmod(update, self.ppo.minibatches)
            rows = self._minibatches(hand, epoch, len(hand.everyone))[part]
            measured = self._update(hand, credit, rows, update)
            hand.tally.append(measured)
            hand.updates = update + 1

    def _update(self, hand: Hand, credit: Credit, rows: Sequence[int], update: int) -> dict[str, float]:
        """One update of actor and critic by the answers at `rows`. Gives what it measured, over all ranks."""
        actor, critic = self.roles.actor.engine, self.roles.critic.engine
        # DeepSpeed averages over ranks, so the world's size makes a sum of it again: losses are means over all tokens
        # of the minibatch, however they are spread over ranks and micro-batches.
        weight = self.ranks.world / sum(len(hand.everyone[row].answer) for row in rows)
        groups = self._share(rows, hand.everyone)
        practice = self.material.practice(self.spec, self.ranks, hand.step, update, len(rows))
        measured = tally.Sums()
        for number, group in enumerate(groups, start=1):
            self.course.between()
            last = number == len(groups)
            policy, value = self._batches(hand, credit, group)
            measured.policy(actor.train_micro(policy, weight=weight, last=last and not practice.micro_batches))
            measured.value(critic.train_micro(value, weight=weight, last=last))
        for number, batch in enumerate(practice.micro_batches, start=1):
            self.course.between()
            last = number == len(practice.micro_batches)
            nats = actor.train_micro(batch, weight=self.ppo.ptx * self.ranks.world / practice.trained, last=last)
            measured.ptx(nats, practice.trained)
        told = measured.over(self.ranks)
        # Checked before the step, so that not even this process has weights that are no numbers.
        for name in ("policy_loss", "value_loss"):
            if not math.isfinite(told[name]):
                raise self.course.diverged(f"the {name.replace('_', ' ')} of step {hand.step} is {told[name]}")
        if update == 0:
            self.lookout.first_ratio(self.course, hand.step, told["ratio_error"])
        told["actor_grad_norm"] = self._step(self.roles.actor, hand, "actor")
        told["critic_grad_norm"] = self._step(self.roles.critic, hand, "critic")
        return told

    def _step(self, learner: Learner, hand: Hand, name: str) -> float:
        """Steps one engine, which clips its own gradient. Gives its norm before that."""
        norm = learner.engine.step(self._lr(learner, hand.step))
        if not math.isfinite(norm):
            raise self.course.diverged(f"the gradient's norm of the {name} in step {hand.step} is {norm}")
        return norm

    def _batches(self, hand: Hand, credit: Credit, group: Sequence[int]) -> tuple[PolicyBatch, ValueBatch]:
        """A micro-batch for the actor and the same for the critic: [rows, time], prompts with answers."""
        answers = [hand.everyone[row] for row in group]
        batch = answer_batch([a.prompt for a in answers], [a.answer for a in answers], pad_id=self.roles.pad_id)
        starts = [len(a.prompt) - 1 for a in answers]
        shape = (batch.input_ids.shape[0], batch.input_ids.shape[1])

        def placed(tokens: Tensor) -> Tensor:
            rows = [tokens[row, : len(a.answer)].numpy() for row, a in zip(group, answers, strict=True)]
            return padded(rows, shape, starts)

        return (
            PolicyBatch(**vars(batch), old_logprobs=placed(credit.logprobs), advantages=placed(credit.advantages)),
            ValueBatch(**vars(batch), old_values=placed(credit.values), returns=placed(credit.returns)),
        )

    # conclude ---------------------------------------------------------------------------------------------------------

    def _conclude(self, hand: Hand, credit: Credit) -> None:
        """Ends an iteration: the price of the KL and the average of the weights follow it, and it is told."""
        metrics = tally.metrics(hand, credit, coef=self.kl.coef, lr=self._lr(self.roles.actor, hand.step))
        self.kl.update(metrics["ppo/kl"], len(hand.everyone))
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

    def _minibatches(self, hand: Hand, epoch: int, count: int) -> list[list[int]]:
        return minibatches(count, parts=self.ppo.minibatches, seed=self.stage.seed, step=hand.step, epoch=epoch)

    def _share(self, rows: Sequence[int], answers: Sequence[Rolled]) -> list[list[int]]:
        lengths = [len(answer) for answer in answers]
        return shares(rows, lengths, rank=self.ranks.rank, world=self.ranks.world, micro_batch=self.spec.micro_batch)

    def _lr(self, learner: Learner, step: int) -> float:
        return learning_rate(step, peak=learner.peak_lr, steps=self.stage.steps, optimizer=learner.optimizer)
