"""What a token was worth: rewards of tokens, advantages and returns.

All of it is arithmetic on fp32 tensors of the shape [rows, time]: a row is an answer, and `mask` is true where the
row's answer has a token. A row's tokens lie side by side; what lies before them (a prompt) and behind them (padding)
may hold anything at all, and is 0 in every result.

Time t stands for the choice of one token: `values[r, t]` is what the critic expects before that token is chosen, and
`rewards[r, t]` what comes for having chosen it. With nothing to come after the last token, V = 0 there, also for an
answer that was cut off at the limit: its reward says what that costs (`reward.missing_eos`).

    rewards      r_t = -coef x KL_t, and the score on top at the last token    (Ziegler et al., 2019, eq. 2)
    error        d_t = r_t + gamma x V_t+1 - V_t                              (Schulman et al., 2016, eq. 10)
    advantages   A_t = d_t + gamma x lam x A_t+1                              (Schulman et al., 2016, eq. 16)
    returns      R_t = A_t + V_t                                              what the critic learns to expect
"""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, coef: float, mask: Tensor) -> Tensor:
    """Rewards of tokens: the price of each token's KL, and the score [rows] on top at the last: [rows, time].

    `kl` is log actor - log reference, in nats, of the token that was chosen (the k1 estimate: its mean over answers is
    the KL). It must be a plain number: a reward has no gradient.
    """
    rewards = torch.where(mask, -coef * kl.float(), 0.0)
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return rewards + torch.where(mask & ~following, scores.float()[:, None], 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation: (advantages, returns), each [rows, time]."""
    rewards, values = torch.where(mask, rewards.float(), 0.0), torch.where(mask, values.float(), 0.0)
    advantages = torch.zeros_like(rewards)
    advantage = value = rewards.new_zeros(len(rewards))  # [rows], of the token after
    for t in reversed(range(rewards.shape[1])):
        error = rewards[:, t] + gamma * value - values[:, t]
        advantage = torch.where(mask[:, t], error + gamma * lam * advantage, 0.0)
        advantages[:, t], value = advantage, values[:, t]
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """`x` [rows, time] less its mean and over its standard deviation, both over all tokens that `mask` has.

    Give a whole iteration's tokens at once, of all ranks: the mean of a few would depend on how they were parted.
    What does not vary becomes 0.
    """
    tokens = x[mask].double()
    if not len(tokens):
        return torch.zeros_like(x, dtype=torch.float32)
    mean, variance = tokens.mean(), tokens.var(correction=0)
    return torch.where(mask, ((x.double() - mean) / (variance + 1e-8).sqrt()).float(), 0.0)


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> float:
    """The share of the returns' variance that the values foresee: 1 is all of it, 0 no more than their mean would.

    NaN where the returns do not vary.
    """
    wanted, error = returns[mask].double(), (returns - values)[mask].double()
    variance = float(wanted.var(correction=0)) if len(wanted) else 0.0
    return 1 - float(error.var(correction=0)) / variance if variance > 0 else float("nan")
