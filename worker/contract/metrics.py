"""The names of all metrics, with their units. What is not in this table is not reported."""

METRICS: dict[str, str] = {
    "train/loss": "nats a trained token, mean over the update's tokens on all ranks",
    "train/lr": "learning rate of the update",
    "train/grad_norm": "norm of the gradient before clipping",
    "train/tokens": "real (unpadded) tokens of the update, all ranks",
    "train/tokens_per_second": "real tokens a second, all ranks",
    "eval/loss": "nats a token on held-out rows",
    "eval/perplexity": "exp(eval/loss)",
    "time/data": "seconds an update waited for its rows",
    "time/forward": "seconds an update spent forward",
    "time/backward": "seconds an update spent backward",
    "time/step": "seconds an update spent in the optimizer",
    "time/save": "seconds the last checkpoint took",
}
