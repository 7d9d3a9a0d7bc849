"""Proximal policy optimization from a reward (Schulman et al., 2017; Ziegler et al., 2019; Ouyang et al., 2022).

One iteration, which is one step of the job:

    roll out   the actor answers prompts                                                    worker/rl/rollout.py
    judge      actor, reference, critic and reward say what they make of each answer         worker/rl/judge.py
    credit     the reward and the price of the KL become advantages and returns of tokens    worker/rl/advantages.py
    learn      clipped updates of actor and critic, over epochs and minibatches              worker/rl/objectives.py

What all methods have of that is in `worker/rl/iterations.py`; here are credit and learn. docs/ppo.md reads them against
the papers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from worker.context import Context
from worker.contract.ppo import PpoStage
from worker.contract.protocol import Output
from worker.distributed import Ranks
from worker.engine import Engine
from worker.rl import tally
from worker.rl.advantages import gae, token_rewards, whiten
from worker.rl.course import Kept
from worker.rl.credit import Credit
from worker.rl.hand import Hand
from worker.rl.iterations import Iterations, learn_by
from worker.rl.kl import AdaptiveKl, k1
from worker.rl.material import Material
from worker.rl.objectives import AnswerBatch, PolicyBatch, ValueBatch
from worker.rl.roles import Learner, Roles


def run(context: Context) -> list[Output]:
    """Trains the spec's actor and critic. Gives the outputs on rank 0. Raises WorkerFailure."""
    return learn_by(Ppo, context)


class Ppo(Iterations[PpoStage]):
    """Actor and critic."""

    def __init__(self, context: Context, ranks: Ranks, roles: Roles, material: Material):
        stage = context.order.spec.stage
        assert isinstance(stage, PpoStage)
        self.ppo, self.kl = stage.ppo, AdaptiveKl.of(stage.ppo.kl)
        super().__init__(context, ranks, roles, material)

    def kept(self) -> Mapping[str, Kept]:
        """The price of the KL, which adapts."""
        return {"kl": self.kl}

    @property
    def coef(self) -> float:
        """The price of a nat of KL in this iteration."""
        return self.kl.coef

    @property
    def critic(self) -> Learner:
        """What foresees the reward."""
        assert self.roles.critic is not None
        return self.roles.critic

    # credit -----------------------------------------------------------------------------------------------------------

    def credit(self, hand: Hand) -> Credit:
        """What each token was worth. Tensors are [answers, tokens of the longest]; all ranks compute the same."""
        told = Credit.of(hand.judged)
        kl = k1(told.logprobs - told.reference)
        rewards = token_rewards(told.scores, kl, self.kl.coef, told.mask)
        advantages, returns = gae(rewards, told.values, told.mask, self.ppo.gamma, self.ppo.lam)
        if self.ppo.whiten:
            advantages = whiten(advantages, told.mask)
        return replace(told, kl=kl, advantages=advantages, returns=returns)

    # learn ------------------------------------------------------------------------------------------------------------

    def update(self, hand: Hand, credit: Credit, rows: Sequence[int], update: int) -> dict[str, float]:
        """One update of actor and critic by the answers at `rows`. Gives what it measured, over all ranks."""
        actor, critic = self.roles.actor.engine, self.critic.engine
        # DeepSpeed averages over ranks, so the world's size makes a sum of it again: losses are means over all tokens
        # of the minibatch, however they are spread over ranks and micro-batches.
        weight = self.ranks.world / sum(len(hand.everyone[row].answer) for row in rows)
        groups = self.share(rows, hand.everyone)
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
        self.check_losses(told, hand, update)
        told["actor_grad_norm"] = self.step(self.roles.actor, hand, "actor")
        told["critic_grad_norm"] = self.step(self.critic, hand, "critic")
        return told

    def _batches(self, hand: Hand, credit: Credit, group: Sequence[int]) -> tuple[PolicyBatch, ValueBatch]:
        """A micro-batch for the actor and the same for the critic: [rows, time], prompts with answers."""
        batch, told = self.batch_of(
            hand, group,
            old_logprobs=credit.logprobs, advantages=credit.advantages,
            old_values=credit.values, returns=credit.returns,
        )  # fmt: skip
        policy = {name: told[name] for name in ("old_logprobs", "advantages")}
        value = {name: told[name] for name in ("old_values", "returns")}
        return PolicyBatch(**vars(batch), **policy), ValueBatch(**vars(batch), **value)

    def worthless(self, batch: AnswerBatch) -> list[tuple[Engine, Any]]:
        """Both, with advantages and returns of 0."""
        nothing = torch.zeros(batch.input_ids.shape)
        policy = PolicyBatch(**vars(batch), old_logprobs=nothing, advantages=nothing)
        value = ValueBatch(**vars(batch), old_values=nothing, returns=nothing)
        return [(self.roles.actor.engine, policy), (self.critic.engine, value)]

    # conclude ---------------------------------------------------------------------------------------------------------

    def concluded(self, hand: Hand, metrics: dict[str, float]) -> None:
        """The price of the KL follows."""
        self.kl.update(metrics["ppo/kl"], len(hand.everyone))
