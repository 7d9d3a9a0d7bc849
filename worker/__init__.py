"""The worker: one attempt of one stage. Only `worker.contract` may be imported from outside."""
