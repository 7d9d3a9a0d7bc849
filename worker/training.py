"""The loop of every training stage: update, evaluate, save, until the steps are done.

    restore -> preflight -> evaluate -> [ update -> evaluate? -> save? ]* -> outputs

At every micro-step all ranks agree on whether to stop. All that is needed to go on exactly is in `Progress` and in the
random states at the update's start; `worker/snapshots.py` stores them.
"""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from worker import snapshots
from worker.context import Context
from worker.contract.order import Order
from worker.contract.protocol import Output
from worker.contract.stages import TrainStage
from worker.curves import Curves
from worker.dataset import Dataset, read_dataset
from worker.distributed import Ranks, check_accelerator
from worker.engine import Engine, Setting, zero_raised
from worker.errors import Diverged, Stopped
from worker.feed import Feed
from worker.memory import explained, preflight
from worker.method import Loop, Method
from worker.models import Loaded
from worker.schedule import learning_rate
from worker.state import Progress, random_states, seed_everything
from worker.stopwatch import Stopwatch


def train(context: Context, method: Method[Any]) -> list[Output]:
    """Trains the spec's model by a method, and hands over what came of it (on rank 0).

    Raises Stopped when asked to, after saving; any other WorkerFailure.
    """
    order = context.order
    check_accelerator(order.spec)
    with context.channel.working():
        loaded = method.load(context)
        method.check(loaded)
        training = Training(context, loaded, dataset_of(order, method, loaded.tokenizer), method)
    return training.run()


def dataset_of(order: Order, method: Method[Any], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The rows of a job as its method reads them. Raises BadData."""
    dataset = read_dataset(
        order,
        lambda source: method.read(source, tokenizer),
        seed=method.stage.seed,
        split=method.split,
        collate=method.collate,
    )
    return method.prepare(dataset)


class Training:
    """One rank's training, from restore to outputs."""

    def __init__(self, context: Context, loaded: Loaded, dataset: Dataset, method: Method[Any]):
        spec = context.order.spec
        assert isinstance(spec.stage, TrainStage)
        self.context, self.spec, self.stage = context, spec, spec.stage
        self.loaded, self.dataset, self.method = loaded, dataset, method
        pad_id = loaded.tokenizer.pad_token_id
        assert isinstance(pad_id, int)  # `load` sees to it
        self.feed = Feed(dataset, spec, rank=context.rank, world=context.world, pad_id=pad_id)
        self.steps = self.feed.steps()
        self.held_out = self.feed.held_out()
        self.ranks = Ranks(context.rank, context.world)
        with explained(spec, "the model and its optimizer"):
            self.engine = Engine(loaded.model, method.objective, Setting.of(spec))
        seed_everything(self.stage.seed, context.rank)
        self.progress, earlier = Progress(), None
        if (found := snapshots.restore(context, self._engines, self.ranks, dataset.hash)) is not None:
            _, common, earlier = found
            self.progress = Progress.of(common["progress"])
            method.load_state(common.get("method", {}))
        self._anew = found is None
        self.saved_step = self.progress.step
        self.random_states = random_states()
        self.curves = self._open_curves(earlier)
        method.open(self._loop)

    def run(self) -> list[Output]:
        """Goes on from where `progress` is, to the end."""
        report = self.context.channel.report
        report("loading", self.progress.step, steps=self.steps, tokens=self.progress.tokens)
        for note in self.loaded.notes if self.context.rank == 0 else []:
            self.context.channel.event("ModelNote", note)
        self._say_what_was_raised()
        if self._anew:
            with explained(self.spec, "what precedes the first step"):
                self.method.begin(self._loop)
        if self.progress.step < self.steps:
            with explained(self.spec, "asking other models"):
                longest = self.method.ready(self.feed.longest(self.progress.position))
            preflight(self.engine, longest, self.spec)
        self._evaluate_if_due()
        while self.progress.step < self.steps:
            self._update()
            self._evaluate_if_due()
            if self.progress.step % self.spec.checkpoint.every_steps == 0:
                self._save(must=False)
        if self.curves:
            self.curves.close()
        return self._hand_over()

    @property
    def _loop(self) -> Loop:
        return Loop(self.context, self.loaded, self.engine, self.ranks, self.feed, self._between)

    @property
    def _engines(self) -> dict[str, Engine]:
        return {"model": self.engine}

    def _say_what_was_raised(self) -> None:
        """Tells that not the ZeRO stage of the spec runs, where that is so."""
        wanted = self.spec.deepspeed.zero
        if self.context.rank == 0 and self.engine.zero != wanted:
            self.context.channel.event("ZeroRaised", zero_raised(wanted, self.engine.zero))

    def _update(self) -> None:
        """One update of the weights, from the data at `progress.position`."""
        step = self.progress.step + 1
        watch = Stopwatch(self.engine.settle)
        with watch("data"):
            update = self.feed.at(self.progress.position)
        found = []
        with explained(self.spec, f"step {step}"):
            update = self.method.before_update(self._loop, update, step)
            # DeepSpeed averages over ranks, so the world's size makes a sum of it again: the loss is the mean over all
            # trained tokens (or rows) of the update, however they are spread over ranks and micro-batches.
            weight = self.ranks.world / max(1, update.trained)
            for number, batch in enumerate(update.micro_batches, start=1):
                self._between()
                last = number == len(update.micro_batches)
                found.append(self.engine.train_micro(self.method.ready(batch), weight=weight, last=last, timer=watch))
            sums = self.ranks.sum(torch.stack(found).double().sum(dim=0).tolist())
            loss = sums[0] / max(1, update.trained)
            # Checked before the step, so that not even this process has weights that are no numbers.
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of step {step} is {loss}")
            lr = learning_rate(step, peak=self.spec.lr, steps=self.steps, optimizer=self.stage.optimizer)
            with watch("step"):
                grad_norm = self.engine.step(lr)
            if not math.isfinite(grad_norm):
                raise self._diverged(f"the gradient's norm of step {step} is {grad_norm}")
        self.random_states = random_states()
        self.progress = replace(
            self.progress,
            step=step,
            position=self.feed.after(self.progress.position),
            tokens=self.progress.tokens + update.tokens,
        )
        speed = update.tokens / watch.elapsed
        self._report(
            {
                "train/loss": loss,
                "train/lr": lr,
                "train/grad_norm": grad_norm,
                "train/tokens": update.tokens,
                "train/tokens_per_second": speed,
                **self.method.metrics(sums),
                **watch.metrics(),
            },
            speed,
        )

    def _evaluate_if_due(self) -> None:
        """Evaluates before the first step, every so many and after the last; each step once, over all attempts."""
        step, settings = self.progress.step, self.spec.evaluate
        every = settings.every_steps if settings else None
        due = step in (0, self.steps) or (every is not None and step % every == 0)
        if not self.held_out or not due or self.progress.evaluated == step:
            return
        self.context.channel.report("evaluating")
        metrics = self.method.evaluate(self.engine, self.held_out, self.ranks, between=self._between)
        self.progress = replace(self.progress, evaluated=step)
        self._report(metrics)

    def _report(self, metrics: dict[str, float], speed: float | None = None) -> None:
        """Tells rank 0's launcher, and TensorBoard, of the point at the current step."""
        if self.context.rank != 0:
            return
        done = self.progress
        self.context.channel.report(
            "training", done.step, steps=self.steps, tokens=done.tokens, tokens_per_second=speed, metrics=metrics
        )
        if self.curves:
            self.curves.add(done.step, metrics)

    def _between(self) -> None:
        """Before each micro-batch, trained or held out: an update or an evaluation may be longer than limits.stall."""
        self.context.channel.going_on()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Saves how things stood when the update began, and raises Stopped, if any rank was asked to stop."""
        stop = self.ranks.agree_to_stop(self.context.channel.stop)
        if stop is None:
            return
        if stop == "save":
            self._save()
        raise Stopped

    def _save(self, *, must: bool = True) -> None:
        """Seals a checkpoint, unless one of this step is there (or nothing has been done that could be lost).

        Without `must` it may be left out, where the one before is still on its way to the store.
        """
        if self.progress.step == self.saved_step:
            return
        self.context.channel.report("saving")
        watch = Stopwatch(self.engine.settle)
        with watch("save"):
            saved = snapshots.save(
                self.context,
                self._engines,
                self.ranks,
                step=self.progress.step,
                own={"random": self.random_states},
                common={"progress": asdict(self.progress), "method": self.method.state()},
                data=self.dataset.hash,
                must=must,
            )
        if not saved:
            return
        self.saved_step = self.progress.step
        self._report(watch.metrics())
        if self.curves:
            self.curves.flush()

    def _diverged(self, what: str) -> Diverged:
        kept = f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "no checkpoint was made yet"
        return Diverged(
            f"{what}, no number any more; {kept}. Try a lower stage.optimizer.lr (now {self.spec.lr:g}), more warmup, "
            "or look at the rows of that step"
        )

    def _open_curves(self, earlier: Path | None) -> Curves | None:
        if not self.stage.tensorboard or self.context.rank != 0:
            return None
        before = earlier.parent.parent / "tensorboard" if earlier else None
        return Curves(self.context.folder / "tensorboard", resumed_from=self.progress.step, earlier=before)

    def _hand_over(self) -> list[Output]:
        """The outputs, written by rank 0 from the weights of all."""
        self.context.channel.report("saving")
        with explained(self.spec, "gathering the whole model"), self.context.channel.working():
            state = self.engine.gather()
            self.method.finish(self._loop, state)
        outputs: list[Output] = []
        from worker.outputs import save_outputs

        if state is not None:
            broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
            if broken:
                raise self._diverged(f"after the last step {broken[0]} holds a value")
            with self.context.channel.working():
                outputs = save_outputs(self.context, self.loaded, state, self.progress.step, beside=self.method.files())
        self.ranks.barrier()
        return outputs
