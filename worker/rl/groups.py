"""Learning from groups: several answers to each prompt, each compared with the others. There is no critic."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from worker.contract.group import GroupStage
from worker.engine import Engine
from worker.rl import tally
from worker.rl.credit import Credit
from worker.rl.group import GroupBatch, advantages_of, counted, weights_of
from worker.rl.hand import Hand
from worker.rl.iterations import Iterations
from worker.rl.kl import k1
from worker.rl.objectives import AnswerBatch


class Groups(Iterations[GroupStage]):
    """The actor alone."""

    @property
    def coef(self) -> float:
        """The price of a nat of KL, as far as the reward pays it."""
        kl = self.stage.group.kl
        return kl.coef if kl.where == "reward" else 0.0

    def credit(self, hand: Hand) -> Credit:
        """Every token of an answer has the answer's advantage."""
        told, group = Credit.of(hand.judged), self.stage.group
        kl = k1(told.logprobs - told.reference)
        worth = self._worth(told, kl)
        each = torch.where(told.mask, advantages_of(worth, self.stage.answers, group)[:, None], 0.0)
        return replace(told, kl=kl, advantages=each, returns=each)

    def _worth(self, told: Credit, kl: Tensor) -> Tensor:
        """What answers are compared by, [answers]: their scores, less the price of the KL where it is in the reward."""
        group = self.stage.group
        if group.kl.where == "loss":
            return told.scores
        return told.scores - group.kl.coef * (kl * told.mask).sum(dim=1)

    def update(self, hand: Hand, credit: Credit, rows: Sequence[int], update: int) -> dict[str, float]:
        """One update of the actor by the answers at `rows`. Gives what it measured, over all ranks."""
        actor, stage = self.roles.actor.engine, self.stage
        ended = torch.tensor([answer.ended for answer in hand.everyone])
        kept = counted(credit.scores, ended, stage.answers, stage.group)
        lengths = credit.mask.sum(dim=1).float()
        weights, divided = weights_of(lengths, kept, stage.group, stage.rollout.max_new_tokens)
        # As many tokens weigh as there are in the minibatch over all ranks.
        weight = self.ranks.world / max(1.0, float(divided[list(rows)].sum()))
        groups, measured = self.share(rows, hand.everyone), tally.Sums()
        for number, group in enumerate(groups, start=1):
            self.course.between()
            batch, told = self.batch_of(
                hand, group, old_logprobs=credit.logprobs, advantages=credit.advantages, reference=credit.reference,
                weights=weights[:, None].expand_as(credit.logprobs),
            )  # fmt: skip
            last = number == len(groups)
            measured.policy(actor.train_micro(GroupBatch(**vars(batch), **told), weight=weight, last=last))
        found = measured.over(self.ranks)
        # The loss is a mean of what its settings say, and not always of tokens.
        found["policy_loss"] *= found["tokens"] / max(1.0, float(divided[list(rows)].sum()))
        self.check_losses(found, hand, update)
        found["actor_grad_norm"] = self.step(self.roles.actor, hand, "actor")
        return found

    def worthless(self, batch: AnswerBatch) -> list[tuple[Engine, Any]]:
        """Advantages of 0."""
        nothing = torch.zeros(batch.input_ids.shape)
        made = GroupBatch(**vars(batch), old_logprobs=nothing, advantages=nothing, reference=nothing, weights=nothing)
        return [(self.roles.actor.engine, made)]
