"""The names of all metrics, with their units. What is not in this table is not reported."""

_OF_ITERATIONS: dict[str, str] = {
    "reward": "weighted sum of the reward's terms, mean of the iteration's answers",
    "return": "the reward less the price of the KL, mean of the iteration's answers",
    "kl": "nats an answer: sum over its tokens of log actor - log reference, mean",
    "kl_token": "nats a token: the same by the k3 estimate, never negative",
    "kl_coef": "price of a nat of KL in this iteration",
    "entropy": "nats a token of what the actor might have said",
    "policy_loss": "clipped policy loss, mean over the iteration's updates",
    "ratio_error": "largest |ratio - 1| in the iteration's first update",
    "step_kl": "nats a token between the actor before and after the iteration's updates",
    "clipped": "share of tokens whose ratio was clipped",
    "length": "tokens an answer, mean",
    "ended": "share of answers that ended by themselves",
    "actor_grad_norm": "norm of the actor's gradient before clipping, mean over the iteration's updates",
    "generated_per_second": "tokens a second while generating, all ranks",
}
"""Of each iteration of a stage that learns from a reward; they begin with the stage's name."""
_OF_PREFERENCES = {
    "rewards/chosen": "dpo, orpo, kto: reward of the better answers (kto: of those to give) that the model implies",
    "rewards/rejected": "the same of the worse answers (kto: of those not to give)",
    "rewards/margin": "`rewards/chosen` less `rewards/rejected`",
    "logps/chosen": "nats of a better answer (kto: of one to give) by the model, mean",
    "logps/rejected": "nats of a worse answer (kto: of one not to give) by the model, mean",
    "orpo/nll": "nats a token of the better answers, mean of the update's rows",
    "orpo/log_odds": "logarithm of the odds of the better answer over the worse one, mean of the update's rows",
    "kto/kl": "nats an answer: how far the model has moved from its beginning, by the update's mismatched pairs",
}
METRICS: dict[str, str] = {
    "train/loss": "nats a trained token (reward, dpo, orpo, kto: loss of a row; classify: of a label, by its weight), "
    "mean over the update on all ranks",
    "train/accuracy": "share of the update's labels that are told right (reward, dpo, orpo: of its pairs whose better "
    "answer has the higher score; a tie counts half; kto: of answers whose reward is on the right side of `kto/kl`)",
    "train/lr": "learning rate of the update (ppo: the actor's)",
    "train/grad_norm": "norm of the gradient before clipping",
    "train/tokens": "real (unpadded) tokens of the update, all ranks",
    "train/tokens_per_second": "real tokens a second, all ranks",
    **_OF_PREFERENCES,
    "eval/loss": "nats a token on held-out rows (reward, dpo, orpo, kto: loss of a row; classify: of a label, of a "
    "regression its squared error)",
    "eval/perplexity": "exp(eval/loss)",
    "eval/accuracy": "share of held-out tokens that are the likeliest (reward, dpo, orpo: of pairs ranked right; kto: "
    "of answers judged right; classify: of labels told right, or of rows with several labels those with all right)",
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
    **{f"eval/{name}": f"the same as `{name}`, on held-out rows" for name in _OF_PREFERENCES},
    "eval/reward": "reward of answers to held-out prompts, mean",
    "eval/kl": "nats an answer to held-out prompts: actor from reference",
    "eval/length": "tokens an answer to held-out prompts",
    "eval/win_rate": "share of prompts on which the model's answer has the higher reward (ppo: higher than the actor's "
    "before the first step); a tie counts half",
    **{f"{stage}/{name}": said for stage in ("ppo", "grpo", "rloo") for name, said in _OF_ITERATIONS.items()},
    "ppo/value_loss": "clipped value loss, mean over the iteration's updates",
    "ppo/ptx_loss": "nats a token on `data.ptx`, mean over the iteration's updates",
    "ppo/values_clipped": "share of tokens whose value was clipped",
    "ppo/explained_variance": "of the returns, by the critic's values before the updates; 1 is perfect",
    "ppo/critic_grad_norm": "norm of the critic's gradient before clipping, mean over the iteration's updates",
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
