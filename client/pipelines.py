"""Pipelines: create them, follow them, change what is wanted of them."""

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from client.problems import Ambiguous
from client.records import Pipeline, PipelineDryRun
from client.transport import Transport
from worker.contract.pipeline import PipelineSpec

# How far back a name is looked for.
_NEWEST = 500


class Pipelines:
    """`client.pipelines`."""

    def __init__(self, transport: Transport):
        self._transport = transport

    def create(self, spec: PipelineSpec | dict[str, Any], *, key: str | None = None) -> Pipeline:
        """A new pipeline, with the jobs of all its steps. `key` makes the call safe to repeat by yourself; absent, one
        is drawn. Raises Problem."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        answer = self._transport.call("POST", "/v1/pipelines", json=_plain(spec), headers=headers)
        return Pipeline.model_validate(answer.json())

    def dry_run(self, spec: PipelineSpec | dict[str, Any]) -> PipelineDryRun:
        """What `create` would give: all steps checked, their references resolved, nothing stored. Raises Problem."""
        answer = self._transport.call("POST", "/v1/pipelines", params={"dry_run": "true"}, json=_plain(spec))
        return PipelineDryRun.model_validate(answer.json())

    def all(self, *, name: str | None = None, limit: int | None = None) -> Iterator[Pipeline]:
        """Pipelines, newest first; read page by page as they are taken. `limit`: at most so many."""
        pages = self._transport.pages("/v1/pipelines", limit=limit, name=name)
        return (Pipeline.model_validate(entry) for entry in pages)

    def get(self, pipeline: str) -> Pipeline:
        """One pipeline by its id. Raises Problem (404)."""
        return Pipeline.model_validate(self._transport.get(f"/v1/pipelines/{pipeline}"))

    def find(self, text: str) -> Pipeline:
        """The one pipeline with this id, name, or beginning of either. Raises Ambiguous with the candidates."""
        if text.startswith("pipe-") and len(text) == 17:
            return self.get(text)
        found = list(self.all(name=text, limit=_NEWEST)) or [
            p for p in self.all(limit=_NEWEST) if p.name.startswith(text) or p.id.startswith((text, f"pipe-{text}"))
        ]
        if len(found) == 1:
            return found[0]
        if not found:
            raise Ambiguous(f"No pipeline is called `{text}`, and none begins so.")
        shown = "\n".join(f"  {p.id}  {p.name}  {p.phase}" for p in found[:8])
        more = f"\n  … and {len(found) - 8} more" if len(found) > 8 else ""
        raise Ambiguous(f"`{text}` may be any of {len(found)} pipelines; name one by its id:\n{shown}{more}")

    def newest(self) -> Pipeline:
        """The pipeline that was made last. Raises Ambiguous if there is none."""
        for pipeline in self.all(limit=1):
            return pipeline
        raise Ambiguous("There is no pipeline yet.")

    def pause(self, pipeline: str) -> Pipeline:
        """Pauses all steps that are not over. Raises Problem (409: all are)."""
        return self._wish(pipeline, "pause")

    def resume(self, pipeline: str) -> Pipeline:
        """Goes on with all steps that are paused. Raises Problem (409)."""
        return self._wish(pipeline, "resume")

    def cancel(self, pipeline: str) -> Pipeline:
        """Cancels all steps that are not over, for ever. Raises Problem (409: all are)."""
        return self._wish(pipeline, "cancel")

    def retry(self, pipeline: str) -> Pipeline:
        """Goes on from the steps that failed; what succeeded is not done again. Raises Problem (409: none failed)."""
        return self._wish(pipeline, "retry")

    def delete(self, pipeline: str) -> None:
        """Removes a pipeline that is over, with its jobs; models stay. Raises Problem (409: it is not over)."""
        self._transport.call("DELETE", f"/v1/pipelines/{pipeline}")

    def wait(
        self,
        pipeline: str,
        *,
        timeout: float | None = None,
        every: float = 0.5,
        seen: Callable[[Pipeline], None] = lambda pipeline: None,
    ) -> Pipeline:
        """The pipeline once all of its steps are over, or paused and meant to stay so; asked for `every` seconds.

        `seen` gets every answer. Raises TimeoutError after `timeout` seconds (None: never), Unreachable, Problem.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            now = self.get(pipeline)
            seen(now)
            if now.final or now.resting:
                return now
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{now.name} ({pipeline}) is still {now.phase} after {timeout:g} s")
            time.sleep(every)

    def _wish(self, pipeline: str, wish: str) -> Pipeline:
        return Pipeline.model_validate(self._transport.call("POST", f"/v1/pipelines/{pipeline}/{wish}").json())


def _plain(spec: PipelineSpec | dict[str, Any]) -> Any:
    return spec.model_dump(mode="json", exclude_unset=True) if isinstance(spec, PipelineSpec) else spec
