"""Distillation: a student learns the odds that a teacher gives each token (Hinton et al., 2015).

The loss is a divergence between their next-token distributions (`worker/divergences.py`) at the tokens of the
assistant's turns. With `own.share` some updates are on answers that the student samples itself, so that it learns what
to say after its own words, and not only after others' (Agarwal et al., 2024). Which updates, and what is sampled, is a
function of seed, step and weights: a resumed run does the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worker.context import Context
from worker.contract.distill import DistillStage
from worker.contract.ppo import Rollout
from worker.contract.protocol import Output
from worker.data import Sample, sample
from worker.distributed import Ranks
from worker.divergences import divergence_sum
from worker.engine import Engine
from worker.errors import BadSpec
from worker.evaluation import of_sums
from worker.feed import Update
from worker.losses import labelled_logits, likelihood_sum, text_sums_of
from worker.memory import explained
from worker.method import Loop, Method
from worker.models import DTYPES, check_length, pretrained
from worker.packing import IGNORED, MicroBatch, counts, micro_batches
from worker.rl.frozen import Frozen
from worker.rl.gathered import gathered
from worker.rl.prompts import seeds
from worker.rl.roles import ends_of
from worker.rl.rollout import sample as sampled
from worker.state import undisturbed
from worker.training import train

# Keeps the draws of updates apart from all others that begin with the seed.
_OWN = 0xD157


def run(context: Context) -> list[Output]:
    """Trains the spec's student. Gives the outputs on rank 0. Raises WorkerFailure."""
    stage = context.order.spec.stage
    assert isinstance(stage, DistillStage)
    return train(context, Distill(stage))


@dataclass(frozen=True)
class Taught:
    """A micro-batch, and the teacher's logits at its labelled positions: [labelled, vocabulary]."""

    batch: MicroBatch
    teacher: Tensor

    @property
    def input_ids(self) -> Tensor:
        """[rows, time]."""
        return self.batch.input_ids

    def to(self, device: torch.device | str) -> "Taught":
        """The same with its tensors on `device`."""
        return replace(self, batch=self.batch.to(device), teacher=self.teacher.to(device, non_blocking=True))


class Distill(Method[DistillStage]):
    """Dialogues, a teacher, and the divergence from it."""

    def __init__(self, stage: DistillStage):
        super().__init__(stage)
        self._teacher: Frozen | None = None
        self._own = False

    def open(self, loop: Loop) -> None:
        """Loads the teacher, which must read the student's tokens. Raises BadSpec."""
        order, role = loop.context.order, self.stage.teacher
        deepspeed, path = role.deepspeed or order.spec.deepspeed, "stage.teacher.model"
        model, tokenizer = pretrained(
            order.inputs[path], role.model, loop.context.store, DTYPES[deepspeed.precision], [],
            path=path, waiting=loop.context.channel.going_on,
        )  # fmt: skip
        # The rows are written by the student's template: the teacher's is not asked.
        if loop.loaded.tokenizer.get_vocab() != tokenizer.get_vocab():
            said = f"{role.model} has another tokenizer than {self.model_name}; odds of other tokens teach nothing"
            raise BadSpec(f"{path}: {said}")
        check_length(model, self.stage.max_length)
        with explained(order.spec, "the teacher"):
            self._teacher = Frozen(model, deepspeed, ranks=order.spec.ranks, device=loop.engine.device)

    def before_update(self, loop: Loop, update: Update, step: int) -> Update:
        """The rows' own answers, or as often as `own.share` says the student's to the same prompts."""
        draws = np.random.default_rng([self.stage.seed, step, _OWN])
        self._own = bool(draws.random() < self.stage.own.share)
        return self._sampled(loop, update, step) if self._own else update

    def ready(self, batch: MicroBatch) -> Taught:
        """The micro-batch with what the teacher says of it."""
        assert self._teacher is not None
        return Taught(batch, self._teacher.compute(batch, labelled_logits))

    def objective(self, model: nn.Module, batch: Taught) -> Tensor:
        """[loss, divergence, tokens]."""
        stage, plain = self.stage, batch.batch
        logits = labelled_logits(model, plain)
        apart = divergence_sum(logits, batch.teacher, stage.divergence, beta=stage.beta, temperature=stage.temperature)
        loss = apart
        if stage.text and not self._own:
            loss = loss + stage.text * likelihood_sum(logits, plain)
        return torch.stack([loss, apart.detach(), apart.new_tensor(float(plain.trained))])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """`train/divergence` and `train/own`."""
        _, apart, tokens = sums
        return {"train/divergence": apart / max(1.0, tokens), "train/own": float(self._own)}

    def evaluate(
        self, engine: Engine, batches: list[Any], ranks: Ranks, between: Callable[[], None]
    ) -> dict[str, float]:
        """The loss on the words of held-out rows, as of any language model, and the divergence there."""
        found = torch.zeros(4, dtype=torch.float64)
        with undisturbed():
            for batch in batches:
                between()
                told = engine.eval_micro(self.ready(batch), self._measured)
                found += told.double().cpu()
        *text, apart = ranks.sum(found.tolist())
        return {**of_sums(text), "eval/divergence": apart / max(1.0, text[-1])}

    def _measured(self, model: nn.Module, batch: Taught) -> Tensor:
        stage = self.stage
        logits = labelled_logits(model, batch.batch)
        apart = divergence_sum(logits, batch.teacher, stage.divergence, beta=stage.beta, temperature=stage.temperature)
        return torch.cat([text_sums_of(logits, batch.batch), apart[None]])

    def _sampled(self, loop: Loop, update: Update, step: int) -> Update:
        """The same prompts with answers that the student samples now, spread over ranks anew by their lengths."""
        own, spec, tokenizer = self.stage.own, loop.context.order.spec, loop.loaded.tokenizer
        pad_id = tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        loop.context.channel.report("generating")
        every = sorted(loop.ranks.gather([ids for batch in update.micro_batches for ids in prompts_of(batch)]))
        room = self.stage.max_length - own.max_new_tokens
        every = [ids[-room:] for ids in every]
        mine = list(range(loop.ranks.rank, len(every), loop.ranks.world))
        rollout = Rollout(max_new_tokens=own.max_new_tokens, temperature=own.temperature, top_p=own.top_p)
        with gathered(loop.engine) as model:
            answers = sampled(
                model, [every[place] for place in mine], seeds=seeds(self.stage.seed, step, mine), rollout=rollout,
                slots=own.slots, ends=ends_of(tokenizer), pad_id=pad_id, device=loop.engine.device,
                between=loop.context.channel.going_on,
            )  # fmt: skip
        told = dict(loop.ranks.gather([(place, answer.ids) for place, answer in zip(mine, answers, strict=True)]))
        rows = [[answered(every[place], told[place])] for place in range(len(every))]
        loop.context.channel.report("training")
        tokens, trained = counts(rows)
        share = micro_batches(
            rows, rank=loop.ranks.rank, world=loop.ranks.world, micro_batch=spec.micro_batch, pad_id=pad_id
        )
        return Update(share, tokens, trained)


def prompts_of(batch: MicroBatch) -> list[list[int]]:
    """Of each row what comes before the last stretch of labelled tokens: the dialogue up to its last answer."""
    found = []
    for ids, labels, positions in zip(batch.input_ids, batch.labels, batch.position_ids, strict=True):
        labelled = (labels != IGNORED).tolist()
        if not any(labelled):
            continue  # padding
        first = len(labelled) - 1 - labelled[::-1].index(True)
        while first > 0 and labelled[first - 1]:
            first -= 1
        assert int(positions[first]) == first  # rows are not packed
        found.append(ids[: first + 1].tolist())
    return found


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Sample:
    """A prompt with an answer, of which the answer is learnt."""
    return sample([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))
