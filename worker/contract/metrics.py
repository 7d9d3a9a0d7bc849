"""The names of all metrics, with their units. What is not in this table is not reported."""

METRICS: dict[str, str] = {
    "train/loss": "nats a trained token (reward: a row; classify: a label, by its weight), mean over the update on all "
    "ranks",
    "train/accuracy": "share of the update's labels that are told right (reward: of its pairs whose better answer has "
    "the higher score; a tie counts half)",
    "train/lr": "learning rate of the update (ppo: the actor's)",
    "train/grad_norm": "norm of the gradient before clipping",
    "train/tokens": "real (unpadded) tokens of the update, all ranks",
    "train/tokens_per_second": "real tokens a second, all ranks",
    "eval/loss": "nats a token on held-out rows (reward: a row; classify: a label, of a regression its squared error)",
    "eval/perplexity": "exp(eval/loss)",
    "eval/accuracy": "share of held-out tokens that are the likeliest (reward: of pairs ranked right; classify: of "
    "labels told right, or of rows with several labels those with all of them right)",
    "eval/macro_f1": "classify: mean of the classes' F1, of those that are there or were told",
    "eval/micro_f1": "classify, several labels a row: F1 over all classes together",
    "eval/pearson": "classify, regression: correlation of what is told with what is, -1 to 1",
    "eval/spearman": "the same of their ranks",
    "eval/calibration": "reward: expected calibration error of the odds that scores give, 0 to 1",
    "eval/score_mean": "reward: mean score of the better answers",
    "eval/score_std": "reward: standard deviation of the scores of all answers",
    "train/divergence": "distill: nats a token between teacher and student, mean over the update on all ranks",
    "train/own": "distill: 1 where the update was on answers that the student sampled, else 0",
    "eval/divergence": "distill: nats a token between teacher and student on held-out rows",
    "eval/reward": "reward of answers to held-out prompts, mean",
    "eval/kl": "nats an answer to held-out prompts: actor from reference",
    "eval/length": "tokens an answer to held-out prompts",
    "eval/win_rate": "share of prompts on which the model's answer has the higher reward (ppo: higher than the actor's "
    "before the first step); a tie counts half",
    "ppo/reward": "weighted sum of the reward's terms, mean of the iteration's answers",
    "ppo/return": "the reward less the price of the KL, mean of the iteration's answers",
    "ppo/kl": "nats an answer: sum over its tokens of log actor - log reference, mean",
    "ppo/kl_token": "nats a token: the same by the k3 estimate, never negative",
    "ppo/kl_coef": "price of a nat of KL in this iteration",
    "ppo/entropy": "nats a token of what the actor might have said",
    "ppo/policy_loss": "clipped policy loss, mean over the iteration's updates",
    "ppo/value_loss": "clipped value loss, mean over the iteration's updates",
    "ppo/ptx_loss": "nats a token on `data.ptx`, mean over the iteration's updates",
    "ppo/ratio_error": "largest |ratio - 1| in the iteration's first update",
    "ppo/step_kl": "nats a token between the actor before and after the iteration's updates",
    "ppo/clipped": "share of tokens whose ratio was clipped",
    "ppo/values_clipped": "share of tokens whose value was clipped",
    "ppo/explained_variance": "of the returns, by the critic's values before the updates; 1 is perfect",
    "ppo/length": "tokens an answer, mean",
    "ppo/ended": "share of answers that ended by themselves",
    "ppo/actor_grad_norm": "norm of the actor's gradient before clipping, mean over the iteration's updates",
    "ppo/critic_grad_norm": "norm of the critic's gradient before clipping, mean over the iteration's updates",
    "ppo/generated_per_second": "tokens a second while generating, all ranks",
    "time/data": "seconds an update waited for its rows",
    "time/forward": "seconds an update spent forward",
    "time/backward": "seconds an update spent backward",
    "time/step": "seconds an update spent in the optimizer",
    "time/generate": "seconds an iteration spent sampling answers",
    "time/score": "seconds an iteration spent on rewards, values and log-probabilities",
    "time/update": "seconds an iteration spent in its updates",
    "time/save": "seconds the last checkpoint took",
}
FAMILIES: dict[str, str] = {
    "reward/": "of a reward's term, before its weight: mean of the iteration's answers; `reward/NAME`",
    "eval/f1/": "classify: F1 of a class, where there are at most 32; `eval/f1/CLASS`, in small letters",
    "eval/reward/": "the same of answers to held-out prompts; `eval/reward/NAME`",
}
"""Metrics whose last part a spec names, by how they begin."""


def known(name: str) -> bool:
    """Whether a metric of this name may be reported."""
    return name in METRICS or any(name.startswith(family) and len(name) > len(family) for family in FAMILIES)
