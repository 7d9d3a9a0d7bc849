"""What runs inside the ranks of the pool, beside whole attempts (`jobs.attempt`)."""

import math
import sys
from typing import Any

from tests.engine.jobs import Job
from worker.contract.stages import PretrainStage, TrainStage


def _feed(job: Job, rank: int, world: int) -> tuple[Any, Any, Any]:
    """(spec, loaded model, feed) of a job, as its stage would make them."""
    from worker.feed import Feed
    from worker.method import Method
    from worker.models import load
    from worker.stages.pretrain import Pretrain
    from worker.training import dataset_of

    order = job.order(1)
    stage = order.spec.stage
    assert isinstance(stage, TrainStage)
    loaded = load(order.spec, order.inputs, job.store)
    method: Method[Any] = Pretrain(stage) if isinstance(stage, PretrainStage) else Method(stage)
    dataset = dataset_of(order, method, loaded.tokenizer)
    feed = Feed(dataset, order.spec, rank=rank, world=world, pad_id=loaded.tokenizer.pad_token_id)
    return order.spec, loaded, feed


def _engine(job: Job, rank: int, world: int) -> tuple[Any, Any, Any, Any]:
    from worker.distributed import Ranks
    from worker.engine import Engine, Setting
    from worker.losses import token_loss_sum

    spec, loaded, feed = _feed(job, rank, world)
    ranks = Ranks(rank, world)
    return spec, Engine(loaded.model, token_loss_sum, Setting.of(spec)), feed, ranks


def plain_losses(rank: int, world: int, job: Job) -> list[tuple[float, float]]:
    """(loss, gradient norm) of every step by torch alone: one batch an update, the mean over its tokens."""
    import torch

    from tests.engine.by_hand import optimizer_by_hand
    from worker.schedule import learning_rate
    from worker.state import Position

    spec, loaded, feed = _feed(job, 0, 1)
    model, settings = loaded.model, spec.stage.optimizer
    optimizer = optimizer_by_hand(model, settings)
    found, position, steps = [], Position(), feed.steps()
    for step in range(1, steps + 1):
        nats, trained = torch.zeros(()), 0
        for batch in feed.at(position).micro_batches:
            logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
            flat, labels = logits.flatten(0, 1), batch.labels.flatten()
            nats = nats + torch.nn.functional.cross_entropy(flat, labels, ignore_index=-100, reduction="sum")
            trained += int((labels != -100).sum())
        loss = nats / trained
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = group["times"] * learning_rate(step, peak=spec.lr, steps=steps, optimizer=settings)
        optimizer.step()
        found.append((loss.item(), norm.item()))
        position = feed.after(position)
    return found


def gradient(rank: int, world: int, job: Job) -> list[float]:
    """The gradient of the first update, before clipping, as one flat list."""
    import torch
    from deepspeed.utils import safe_get_full_grad

    from worker.state import Position

    _, engine, feed, _ = _engine(job, rank, world)
    update = feed.at(Position())
    for number, batch in enumerate(update.micro_batches, start=1):
        last = number == len(update.micro_batches)
        engine.train_micro(batch, weight=world / max(1, update.trained), last=last)
    gradients = [
        p.grad if engine.zero == 0 else safe_get_full_grad(p) for p in engine.model.parameters() if p.requires_grad
    ]
    return torch.cat([g.detach().flatten() for g in gradients]).tolist()


def preflight_changes(rank: int, world: int, job: Job, steps: int) -> list[str]:
    """What a preflight changed after `steps` updates, by name: nothing, if it keeps its promise."""
    import torch

    from worker.memory import preflight
    from worker.state import Position, random_states

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
        return bool(a == b)

    def copy(a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            return a.detach().clone()
        if isinstance(a, dict):
            return {k: copy(v) for k, v in a.items()}
        return type(a)(copy(v) for v in a) if isinstance(a, list | tuple) else a

    def state() -> dict[str, Any]:
        return copy(
            {
                "weights": engine.gather(),
                "optimizer": engine._engine.optimizer.state_dict(),
                "random": random_states(),
                "gradients": [p.grad for p in engine.model.parameters()],
            }
        )

    spec, engine, feed, _ = _engine(job, rank, world)
    position = Position()

    def train() -> list[float]:
        nonlocal position
        update = feed.at(position)
        position = feed.after(position)
        loss = [
            engine.train_micro(batch, weight=world / update.trained, last=batch is update.micro_batches[-1]).item()
            for batch in update.micro_batches
        ]
        return [*loss, engine.step(0.01)]

    for _ in range(steps):
        train()
    before = state()
    preflight(engine, feed.longest(position), spec)
    after = state()
    return [name for name in before if not same(before[name], after[name])]


def losses_with_discards(rank: int, world: int, job: Job, discard: bool) -> list[float]:
    """The losses of some updates; with `discard`, another update's gradients are added up and forgotten before each."""
    from worker.state import Position

    _, engine, feed, _ = _engine(job, rank, world)
    position, losses = Position(), []
    for _ in range(3):
        update, other = feed.at(position), feed.at(feed.after(position))
        if discard:
            for batch in other.micro_batches:
                engine.train_micro(batch, weight=3.0, last=batch is other.micro_batches[-1])
            engine.discard_gradients()
            engine.train_micro(other.micro_batches[0], weight=3.0, last=False)
            engine.discard_gradients()
        for batch in update.micro_batches:
            loss = engine.train_micro(batch, weight=world / update.trained, last=batch is update.micro_batches[-1])
            losses.append(loss.item())
        losses.append(engine.step(0.01))
        position = feed.after(position)
    return losses


def longest_row(rank: int, world: int, job: Job) -> list[int]:
    """The length of the preflight's longest row, and then those of all rows."""
    from worker.state import Position

    _, _, feed = _feed(job, rank, world)
    rows = [sum(map(len, row)) for update in feed.epoch(0) for row in update]
    return [feed.longest(Position()).input_ids.shape[1], *rows]


def feed_without_targets(rank: int, world: int, job: Job) -> str:
    """What is said of samples of which nothing is trained."""
    from worker.data import sample
    from worker.dataset import Dataset
    from worker.errors import BadData
    from worker.feed import Feed

    nothing = [sample([1, 2, 3], [False] * 3)]
    try:
        Feed(Dataset(nothing, [], False, ""), job.order(1).spec, rank=rank, world=world, pad_id=0)
    except BadData as error:
        return error.message
    return ""


def attempt_that_always_signs(rank: int, world: int, job: Job) -> list[dict[str, Any]]:
    """What an attempt tells that may give a sign of progress as often as it likes."""
    from tests.engine.jobs import attempt
    from worker import channel

    before, channel.SIGN_EVERY = channel.SIGN_EVERY, 1e-9
    try:
        return attempt(rank, world, job, 1).said
    finally:
        channel.SIGN_EVERY = before


def attempt_with_another_tokenizer(rank: int, world: int, job: Job, number: int) -> Any:
    """An attempt whose tokenizer makes other tokens of the same rows, as another version of it may."""
    from tests.engine.jobs import attempt
    from worker import data

    before = data.trained_tokens

    def fewer(offsets: Any, spans: Any) -> Any:
        mask = before(offsets, spans)
        mask[mask.argmax()] = False
        return mask

    data.trained_tokens = fewer
    try:
        return attempt(rank, world, job, number)
    finally:
        data.trained_tokens = before


def attempt_without_memory(rank: int, world: int, job: Job) -> tuple[str, str]:
    """An attempt on a machine that has room for the model, but for no row of the batch."""
    import torch

    from tests.engine.jobs import attempt
    from worker import losses
    from worker.stages import sft

    def greedy(model: Any, batch: Any) -> Any:
        # A petabyte: refused by any machine's allocator, in its own words.
        return losses.token_loss_sum(model, batch) + torch.empty(2**50, dtype=torch.uint8).sum()

    sft.token_loss_sum = greedy  # type: ignore[assignment]
    try:
        ended = attempt(rank, world, job, 1)
    finally:
        sft.token_loss_sum = losses.token_loss_sum
    return ended.outcome, ended.message


def attempt_with_nan(rank: int, world: int, job: Job, at: int) -> Any:
    """An attempt whose loss is NaN on the last rank, at its training micro-batch `at` (the preflight's is the 0th)."""
    from tests.engine.jobs import attempt
    from worker import losses
    from worker.stages import sft

    seen = 0

    def sometimes_nan(model: Any, batch: Any) -> Any:
        nonlocal seen
        seen += 1
        loss = losses.token_loss_sum(model, batch)
        return loss * float("nan") if rank == world - 1 and seen == at + 1 else loss

    sft.token_loss_sum = sometimes_nan  # type: ignore[assignment]
    try:
        return attempt(rank, world, job, 1)
    finally:
        sft.token_loss_sum = losses.token_loss_sum


def compiler_is_loaded(rank: int, world: int) -> bool:
    """Whether this process has imported what compiles for torch."""
    return "torch._inductor.compile_fx" in sys.modules


def attempt_with_infinite_gradient(rank: int, world: int, job: Job) -> Any:
    """An attempt whose loss is a number, and its gradient is not."""
    import torch

    from tests.engine.jobs import attempt
    from worker import losses
    from worker.stages import sft

    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad * float("inf")

    sft.token_loss_sum = lambda model, batch: Steep.apply(losses.token_loss_sum(model, batch))  # type: ignore[assignment]
    try:
        return attempt(rank, world, job, 1)
    finally:
        sft.token_loss_sum = losses.token_loss_sum


def tensorboard_points(rank: int, world: int, folder: str, name: str) -> list[tuple[int, float]]:
    """A curve as TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder)
    events.Reload()
    return [(point.step, point.value) for point in events.Scalars(name)]


def attempt_of_a_release_without_groups(rank: int, world: int, job: Job, plan: Any) -> Any:
    """An attempt whose checkpoints say nothing of what the rates of groups are multiplied by."""
    from tests.engine.jobs import attempt
    from worker import engine, optimizers

    before = optimizers.SCALE
    engine.SCALE = optimizers.SCALE = "told otherwise"
    try:
        return attempt(rank, world, job, 1, plan)
    finally:
        engine.SCALE = optimizers.SCALE = before
