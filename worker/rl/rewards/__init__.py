"""What answers are worth: the terms that need no model, and how all terms become one reward."""

from worker.rl.rewards.combine import combine, scaled, weighted
from worker.rl.rewards.terms import Asked, Terms

__all__ = ["Asked", "Terms", "combine", "scaled", "weighted"]
