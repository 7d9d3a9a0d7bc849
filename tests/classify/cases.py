"""What runs inside the ranks of the pool: classifiers."""

from typing import Any

from tests.engine.jobs import Job


def gradient(rank: int, world: int, job: Job) -> list[float]:
    """The gradient of the first update, before clipping, as one flat list."""
    import torch
    from deepspeed.utils import safe_get_full_grad

    from worker.distributed import Ranks
    from worker.engine import Engine, Setting
    from worker.feed import Feed
    from worker.stages.classify import Classifying
    from worker.state import Position
    from worker.training import dataset_of

    method, loaded, order = _method(job)
    assert isinstance(method, Classifying)
    dataset = dataset_of(order, method, loaded.tokenizer)
    update = Feed(dataset, order.spec, rank=rank, world=world, pad_id=loaded.tokenizer.pad_token_id).at(Position())
    Ranks(rank, world)
    engine = Engine(loaded.model, method.objective, Setting.of(order.spec))
    for number, batch in enumerate(update.micro_batches, start=1):
        engine.train_micro(batch, weight=world / update.trained, last=number == len(update.micro_batches))
    trained = [p for p in engine.model.parameters() if p.requires_grad]
    gradients = [p.grad if engine.zero == 0 else safe_get_full_grad(p) for p in trained]
    return torch.cat([g.detach().flatten() for g in gradients if g is not None]).tolist()


def _method(job: Job) -> Any:
    """(method, loaded model, order) of a job."""
    from tests.engine.jobs import Plan, PlannedChannel
    from worker.context import Context
    from worker.contract.classify import ClassifyStage
    from worker.stages.classify import Classifying

    order = job.order(1)
    assert isinstance(order.spec.stage, ClassifyStage)
    method = Classifying(order.spec.stage)
    context = Context(order=order, rank=0, world=1, channel=PlannedChannel(Plan(), 0), store=job.store)
    return method, method.load(context), order
