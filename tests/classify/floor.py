"""A linear model on a bag of words: what a classifier must be better than to be worth its weights."""

import re
from typing import Any

import torch
from torch import Tensor


def accuracy(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> float:
    """Held-out accuracy of logistic regression on tf-idf, at whichever of several penalties is best for it."""
    names = sorted({row["label"] for row in train})
    counts: dict[str, int] = {}
    for row in train:
        for word in sorted(set(_words(row))):
            counts[word] = counts.get(word, 0) + 1
    rarity = {word: float(torch.tensor((1 + len(train)) / (1 + count)).log()) + 1 for word, count in counts.items()}
    place = {word: number for number, word in enumerate(rarity)}

    def features(rows: list[dict[str, Any]]) -> Tensor:
        made = torch.zeros(len(rows), len(place), dtype=torch.float64)
        for r, row in enumerate(rows):
            for word in _words(row):
                if word in place:
                    made[r, place[word]] += rarity[word]
        return torch.nn.functional.normalize(made, dim=1)

    def labels(rows: list[dict[str, Any]]) -> Tensor:
        return torch.tensor([names.index(row["label"]) for row in rows])

    seen, unseen = features(train), features(held_out)
    return max(_fitted(seen, labels(train), unseen, labels(held_out), penalty) for penalty in (1e-4, 1e-3, 3e-3, 1e-2))


def _fitted(seen: Tensor, labels: Tensor, unseen: Tensor, wanted: Tensor, penalty: float) -> float:
    weight = torch.zeros(seen.shape[1], int(labels.max()) + 1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(weight.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = torch.nn.functional.cross_entropy(seen @ weight + bias, labels) + penalty * weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return (unseen @ weight + bias).argmax(dim=1).eq(wanted).float().mean().item()


def _words(row: dict[str, Any]) -> list[str]:
    return re.findall(r"[a-z0-9']+", row["text"].lower())
