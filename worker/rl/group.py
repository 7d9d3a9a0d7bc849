"""What an answer is worth beside the others to the same prompt, and the loss that follows from it.

With r the rewards of a group of G answers (less the price of the KL, where that is in the reward):

    grpo    A_i = (r_i - mean r) / (std r + 1e-4), std with G - 1        (Shao et al., 2024); without std: Dr. GRPO
    rloo    A_i = r_i - mean of the others = (r_i - mean r) G / (G - 1)  (Ahmadian et al., 2024)

Each of an answer's tokens has its advantage. The loss of a token is -min(rho A, clip(rho) A), and with the price of the
KL in the loss coef x k3 on top; `average` says what the tokens' weights are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.contract.group import Group, Grpo
from worker.logprobs import with_entropy
from worker.losses import labelled_logits
from worker.rl.objectives import PolicyBatch

_LITTLE = 1e-4


@dataclass(frozen=True)
class GroupBatch(PolicyBatch):
    """What the actor learns from. What stands where no token of an answer is chosen is not looked at."""

    reference: Tensor  # [rows, time]: log-probabilities of the reference, nats
    weights: Tensor  # [rows, time]: of each token in the loss


def advantages_of(rewards: Tensor, size: int, group: Group) -> Tensor:
    """The advantages of answers, [answers]; those of a prompt lie side by side, `size` of them."""
    groups = rewards.double().reshape(-1, size)
    above = groups - groups.mean(dim=1, keepdim=True)
    if isinstance(group, Grpo):
        found = above / (groups.std(dim=1, keepdim=True) + _LITTLE) if group.std else above
    else:
        found = above * size / (size - 1)
    return found.reshape(-1).float()


def counted(rewards: Tensor, ended: Tensor, size: int, group: Group) -> Tensor:
    """Which answers are learnt from, [answers]: without those that the settings leave out."""
    kept = torch.ones_like(rewards, dtype=torch.bool)
    if group.drop_equal:
        groups = rewards.reshape(-1, size)
        kept &= (groups.amax(dim=1) > groups.amin(dim=1)).repeat_interleave(size)
    return kept & ended if group.mask_overlong else kept


def weights_of(lengths: Tensor, kept: Tensor, group: Group, most: int) -> tuple[Tensor, Tensor]:
    """What each answer's tokens weigh in the loss, and what each answer adds to what the loss is divided by; [answers].

    `most`: tokens that an answer may have.
    """
    learnt = kept.float()
    match group.average:
        case "token":
            return learnt, learnt * lengths
        case "answer":
            return learnt / lengths, learnt
        case "length":
            return learnt / most, learnt


def group_sums(model: nn.Module, batch: GroupBatch, group: Group, temperature: float) -> Tensor:
    """The actor's loss and what is told of it: [POLICY_SUMS] in fp32, of which `loss` alone has a gradient."""
    mask = batch.mask
    logprobs, entropies = with_entropy(labelled_logits(model, batch), batch.labels[mask], temperature)
    advantages, weights = batch.advantages[mask].float(), batch.weights[mask].float()
    log_ratio = logprobs - batch.old_logprobs[mask].float()  # [tokens]
    if group.ratio == "sequence":
        rows = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)[mask]  # [tokens]: whose they are
        total = log_ratio.new_zeros(len(mask)).index_add(0, rows, log_ratio)
        log_ratio = (total / mask.sum(dim=1).clamp(min=1))[rows]
    ratio = log_ratio.exp()
    high = group.clip if group.clip_high is None else group.clip_high
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - group.clip, 1 + high)
    policy_loss = (weights * torch.maximum(plain, clipped)).sum()
    loss = policy_loss
    if group.kl.coef and group.kl.where == "loss":
        apart = batch.reference[mask].float() - logprobs
        loss = loss + group.kl.coef * (weights * (torch.expm1(apart) - apart)).sum()
    if group.entropy:
        loss = loss - group.entropy * (weights * entropies).sum()
    with torch.no_grad():
        # KL(then | now) of tokens drawn then, by k3: rho - 1 - log rho.
        step_kl = (torch.expm1(log_ratio) - log_ratio).sum()
        error = torch.cat([(ratio - 1).abs(), ratio.new_zeros(1)]).max()
        told = [policy_loss, (clipped > plain).sum(), mask.sum(), entropies.sum(), step_kl, error]
    return torch.stack([loss, *(one.detach().float() for one in told)])
