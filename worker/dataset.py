"""What a job trains on and what it holds out, as the items that its stage makes of rows."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.contract.order import Input, Order
from worker.data import held_out
from worker.packing import Collate, Item, collate


class Hashed(Item, Protocol):
    """An item that says what it is made of."""

    def parts(self) -> Iterator[bytes]:
        """All that it is, as bytes."""


@dataclass(frozen=True)
class Dataset:
    """The rows of a job."""

    train: Sequence[Item]
    held_out: Sequence[Item]
    split: bool
    """Whether samples may be cut where a packed row is full (raw text may, a dialogue may not)."""
    hash: str
    """Of `train` as it is, every token and which of them are trained, and of the seed that orders it."""
    collate: Collate = collate
    """Makes a micro-batch of rows."""


def read_dataset(
    order: Order, read: Callable[[Input], Sequence[Hashed]], *, seed: int, split: bool, collate: Collate
) -> Dataset:
    """The training rows as `read` makes items of a file, and those to evaluate on: a file of their own, or a share.

    Raises what `read` raises.
    """
    train, rest = read(order.inputs["stage.data.train"]), list[Hashed]()
    if order.spec.evaluate is not None:
        if order.spec.evaluate.held_out is not None:
            train, rest = held_out(train, order.spec.evaluate.held_out, seed)
        else:
            rest = list(read(order.inputs["evaluate.data"]))
    return Dataset(train, rest, split, _hash_of(train, seed), collate)


def _hash_of(items: Sequence[Hashed], seed: int) -> str:
    """The file's own hash would not do: another tokenizer or template makes other samples of the same rows."""
    digest = hashlib.sha256(f"{seed} {len(items)}".encode())
    for item in items:
        for part in item.parts():
            digest.update(part)
    return digest.hexdigest()
