"""What answers are worth: the terms that need no model, and how all terms become one reward."""

from worker.rl.rewards.combine import scaled, weighted, win_rate
from worker.rl.rewards.terms import Asked, Terms

__all__ = ["Asked", "Terms", "scaled", "weighted", "win_rate"]
