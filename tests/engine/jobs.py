"""Small jobs: specs, rows, and one attempt of them inside a rank of the pool."""

import hashlib
import json
import os
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.channel import Channel
from worker.context import Context
from worker.contract.check import parse_spec
from worker.contract.manifest import tree_hash
from worker.contract.order import Input, Order
from worker.contract.references import others
from worker.contract.spec import JobSpec
from worker.contract.stages import TrainStage
from worker.errors import WorkerFailure

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
WORDS = [
    "the",
    "a",
    "red",
    "blue",
    "small",
    "large",
    "cat",
    "dog",
    "tree",
    "house",
    "runs",
    "sleeps",
    "eats",
    "sees",
    "and",
    "but",
    "then",
    "here",
    "there",
    "now",
]


def words(rng: random.Random, fewest: int, most: int) -> str:
    """A text of some words."""
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(fewest, most)))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Input:
    """A data file, as an order names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each rank writes it: the same bytes, whole at any moment.
    own = path.with_suffix(f".{os.getpid()}")
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own.replace(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Input(reference=f"files/{path.stem}", kind="file", location=str(path), sha256=digest, rows=len(rows))


def texts(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows for pretrain."""
    rng = random.Random(seed)
    return [{"text": words(rng, 3, 20)} for _ in range(count)]


def dialogues(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows for sft, of uneven lengths."""
    rng = random.Random(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": words(rng, 1, 4)},
                {"role": "assistant", "content": words(rng, 1, 12)},
            ]
        }
        for _ in range(count)
    ]


def spec(stage: str = "sft", **changes: Any) -> dict[str, Any]:
    """A tiny job's spec. Keys of `changes` are dotted paths with `__` for dots; a None value removes."""
    made: dict[str, Any] = {
        "stage": {
            "type": stage,
            "model": {"config": dict(LLAMA)},
            "data": {"train": "files/train"},
            "batch": 4,
            "micro_batch": 1,
            "max_length": 128,
            "steps": 4,
            "optimizer": {"lr": 0.01, "warmup": 0.0},
        },
        "deepspeed": {"precision": "fp32"},
    }
    return changed(made, changes)


def changed(made: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A spec with `changes` in it: dotted paths with `__` for dots, and a None value removes."""
    for path, value in changes.items():
        at = made
        *parents, last = path.split("__")
        for parent in parents:
            at = at.setdefault(parent, {})
        if value is None:
            at.pop(last, None)
        else:
            at[last] = value
    return made


@dataclass
class Job:
    """A job in a store: its spec, its files, and its attempts so far."""

    store: Path
    spec: dict[str, Any]
    rows: list[dict[str, Any]]
    held_out: list[dict[str, Any]] = field(default_factory=list)
    name: str = "job-test"

    def order(self, attempt: int) -> Order:
        """What attempt `attempt` is given."""
        inputs = {"stage.data.train": write_rows(self.store / "files" / "train.jsonl", self.rows)}
        spec = parse_spec(self.spec)
        for path, model in {"stage.model": self.spec["stage"]["model"], **_others(spec)}.items():
            if isinstance(model, str):
                inputs[path] = Input(reference=model, kind="path", location=model, sha256=tree_hash(Path(model)))
        if self.held_out:
            inputs["evaluate.data"] = write_rows(self.store / "files" / "eval.jsonl", self.held_out)
        return Order(
            job=self.name,
            attempt=attempt,
            spec=spec,
            inputs=inputs,
            store=f"file://{self.store}",
            control_url_file="",
            token_file="",
            termination_file="",
            log_folder="",
        )


def _others(spec: JobSpec) -> dict[str, str]:
    """The other models that a stage asks, by their paths."""
    found = others(spec.stage) if isinstance(spec.stage, TrainStage) else {}
    return {f"stage.{field}": reference for field, reference in found.items()}


class Killed(BaseException):
    """The rank's process is gone, as by SIGKILL: nothing is cleaned up."""


@dataclass(frozen=True)
class Plan:
    """What befalls an attempt, counted in the looks that the ranks take at the stop flag (one a micro-batch)."""

    kill_at: int | None = None
    stop_at: int | None = None
    stop: str = "save"
    only_rank: int | None = None


class PlannedChannel(Channel):
    """A real channel, whose launcher asks to stop (or kills) at a planned moment."""

    def __init__(self, plan: Plan, rank: int):
        self.launcher, end = socket.socketpair()
        super().__init__(end, rank=rank)
        self._plan, self._looks = plan, 0
        self._heard = bytearray()
        # Read as it comes, as a launcher does: a rank with much to say would wait for room.
        threading.Thread(target=self._listen, daemon=True).start()
        # A channel ends its process when its launcher is gone; these launchers live as long as the pool.
        _ALIVE.append(self)

    @property
    def stop(self) -> Any:
        """Whether the ranks should stop, by the plan."""
        self._looks += 1
        plan = self._plan
        if plan.only_rank not in (None, self.rank):
            return None
        if plan.kill_at is not None and self._looks >= plan.kill_at:
            raise Killed
        return plan.stop if plan.stop_at is not None and self._looks >= plan.stop_at else None

    def said(self) -> list[dict[str, Any]]:
        """All that was told to the launcher so far."""
        self.flush()
        # What was sent before is in the socket now; this comes after it.
        self.event("Heard", "")
        self.flush()
        while b'"Heard"' not in self._heard:
            time.sleep(0.001)
        lines = [json.loads(line) for line in bytes(self._heard).splitlines()]
        return [line for line in lines if line.get("event", {}).get("type") != "Heard"]

    def _listen(self) -> None:
        while chunk := self.launcher.recv(2**20):
            self._heard += chunk


_ALIVE: list[Channel] = []


@dataclass
class Ended:
    """How an attempt ended, and what it told."""

    outcome: str
    message: str
    said: list[dict[str, Any]]
    outputs: list[dict[str, Any]]

    def curve(self, name: str) -> dict[int, float]:
        """A metric by step."""
        return {m["step"]: m["metrics"][name] for m in self.said if m["kind"] == "report" and name in m["metrics"]}

    @property
    def losses(self) -> dict[int, float]:
        """train/loss by step."""
        return self.curve("train/loss")

    @property
    def events(self) -> dict[str, str]:
        """Events' messages by type."""
        return {m["event"]["type"]: m["event"]["message"] for m in self.said if m["kind"] == "event"}

    @property
    def checkpoints(self) -> list[int]:
        """The steps of sealed checkpoints."""
        return [m["checkpoint"]["step"] for m in self.said if m["kind"] == "checkpoint"]

    @property
    def resumed_from(self) -> int | None:
        """The step that it went on from."""
        return next((m["step"] for m in self.said if m["kind"] == "resumed"), None)


def attempt(rank: int, world: int, job: Job, number: int, plan: Plan = Plan()) -> Ended:
    """Runs one attempt of `job` in this rank."""
    import importlib

    order = job.order(number)
    channel = PlannedChannel(plan, rank)
    context = Context(order=order, rank=rank, world=world, channel=channel, store=job.store)
    stage = importlib.import_module(f"worker.stages.{order.spec.stage.type}")
    try:
        outputs = stage.run(context)
    except Killed:
        return Ended("Killed", "", channel.said(), [])
    except WorkerFailure as failure:
        return Ended(failure.reason, failure.message, channel.said(), [])
    return Ended("Finished", "", channel.said(), [output.model_dump() for output in outputs])
