"""What a PPO learns from: prompts to answer, prompts held out, and dialogues to go on learning from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worker.context import Context
from worker.contract.ppo import RlStage
from worker.contract.spec import JobSpec
from worker.data import Sample, dialogues, held_out, read_rows, unchanged
from worker.distributed import Ranks
from worker.packing import MicroBatch, counts, micro_batches
from worker.rl.prompts import PromptRow, load_prompts
from worker.rl.roles import Roles


@dataclass(frozen=True)
class Practice:
    """One rank's rows of dialogues in an update, and how many of their tokens are trained on all ranks."""

    micro_batches: list[MicroBatch]
    trained: int


@dataclass(frozen=True)
class Material:
    """The rows of a PPO."""

    prompts: Sequence[PromptRow]
    held_out: Sequence[PromptRow]
    dialogues: Sequence[Sample]
    pad_id: int
    hash: str
    """Of the prompts in their order and of the dialogues: what a checkpoint's place in them depends on."""

    def practice(self, spec: JobSpec, ranks: Ranks, step: int, update: int, rows: int) -> Practice:
        """The dialogues that go with an update of `rows` answers: a pure function of seed, step and update."""
        if not self.dialogues:
            return Practice([], 0)
        assert isinstance(spec.stage, RlStage)
        draws = np.random.default_rng([spec.stage.seed, step, update, 0x97F])
        chosen = [[self.dialogues[i]] for i in draws.integers(0, len(self.dialogues), rows)]
        share = micro_batches(
            chosen, rank=ranks.rank, world=ranks.world, micro_batch=spec.micro_batch, pad_id=self.pad_id
        )
        return Practice(share, max(1, counts(chosen)[1]))


def prepare(context: Context, roles: Roles) -> Material:
    """Reads all rows. Raises BadData, with the line where it can be told."""
    spec, inputs = context.order.spec, context.order.inputs
    stage = spec.stage
    assert isinstance(stage, RlStage)
    tokenizer = roles.tokenizer
    room = stage.max_length - stage.rollout.max_new_tokens
    prompts = load_prompts(inputs["stage.data.prompts"], tokenizer, room=room, truncate=stage.data.truncate)
    kept_back: list[PromptRow] = []
    if spec.evaluate is not None:
        if spec.evaluate.held_out is not None:
            prompts, kept_back = held_out(prompts, spec.evaluate.held_out, stage.seed)
        else:
            kept_back = load_prompts(
                inputs["evaluate.data"], tokenizer, room=room, truncate=stage.data.truncate, path="evaluate.data"
            )
    practised: list[Sample] = []
    if stage.data.ptx is not None:
        rows = read_rows(unchanged(inputs["stage.data.ptx"]), ("messages",))
        practised = list(dialogues(rows, tokenizer, stage.max_length, stage.data.truncate))
    return Material(prompts, kept_back, practised, roles.pad_id, _hash(prompts, practised, stage.seed))


def _hash(prompts: Sequence[PromptRow], dialogues: Sequence[Sample], seed: int) -> str:
    digest = hashlib.sha256(f"{seed} {len(prompts)} {len(dialogues)}".encode())
    for ids in [*(row.ids for row in prompts), *(sample.ids for sample in dialogues)]:
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(ids.tobytes())
    return digest.hexdigest()
