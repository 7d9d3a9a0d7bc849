"""Reinforcement learning from a reward: rollouts, advantages, rewards and guards."""
