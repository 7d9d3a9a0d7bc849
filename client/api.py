"""The client: `Client(url)`, and its `jobs`, `pipelines`, `files`, `models`, `projects` and `keys`.

with Client("http://127.0.0.1:8000") as client:
    file = client.files.upload(Path("rows.jsonl"))
    job = client.jobs.create({"stage": {"type": "sft", "model": "...", "data": f"files/{file.id}"}})
    job = client.jobs.wait(job.id)
"""

import os
from types import TracebackType
from typing import Any, Self

from client.access import Keys, Projects
from client.files import Files
from client.jobs import Jobs
from client.models import Models
from client.pipelines import Pipelines
from client.transport import Transport
from worker.contract.estimate import Estimate
from worker.contract.spec import JobSpec

DEFAULT_URL = "http://127.0.0.1:8000"


class Client:
    """A control plane, by its URL.

    `timeout` is in seconds, for each wait on the network; `patience` is for how many seconds a call is repeated while
    nobody answers, by default as long as a restart takes. Every call may be repeated safely: creates carry an
    Idempotency-Key. Calls raise `Problem` (the server refuses, and says why) or `Unreachable`. `key` is an API key,
    absent: what RLHF_API_KEY holds; `project` is for admins, who may act in another project than their key's; absent:
    RLHF_PROJECT.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        project: str | None = None,
        timeout: float = 30.0,
        patience: float = 15.0,
    ):
        self._transport = Transport(
            url,
            key=key or os.environ.get("RLHF_API_KEY"),
            project=project or os.environ.get("RLHF_PROJECT"),
            timeout=timeout,
            patience=patience,
        )
        self.jobs = Jobs(self._transport)
        self.files = Files(self._transport)
        self.models = Models(self._transport)
        self.pipelines = Pipelines(self._transport)
        self.projects = Projects(self._transport)
        self.keys = Keys(self._transport)

    @property
    def url(self) -> str:
        """The address that this client calls."""
        return self._transport.url

    def ready(self) -> bool:
        """Whether the control plane takes jobs now. Raises Unreachable, Problem."""
        return self._transport.call("GET", "/readyz").is_success

    def estimate(self, spec: JobSpec | dict[str, Any], *, memory: str | None = None) -> Estimate:
        """The memory that a spec needs, and whether it fits. Nothing is made. Raises Problem.

        `memory` is a quantity such as `24Gi`: of an accelerator, or without one of a node.
        """
        plain = spec.model_dump(mode="json", exclude_unset=True) if isinstance(spec, JobSpec) else spec
        params = {"memory": memory} if memory is not None else {}
        return Estimate.model_validate(self._transport.call("POST", "/v1/estimate", params=params, json=plain).json())

    def close(self) -> None:
        """Closes all connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
