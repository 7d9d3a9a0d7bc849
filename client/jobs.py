"""Jobs: create them, follow them, change what is wanted of them."""

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from client.problems import Ambiguous, NoObjects
from client.records import Attempt, Checkpoint, DryRun, Event, Explanation, Job, LogLine, Point, Sample
from client.streams import follow
from client.transport import Transport
from worker.contract.spec import JobSpec

# How far back a name is looked for.
_NEWEST = 1000


class Jobs:
    """`client.jobs`."""

    def __init__(self, transport: Transport):
        self._transport = transport

    def create(self, spec: JobSpec | dict[str, Any], *, key: str | None = None) -> Job:
        """A new job. `key` makes the call safe to repeat by yourself; absent, one is drawn. Raises Problem."""
        return Job.model_validate(self._post("/v1/jobs", _plain(spec), key))

    def dry_run(self, spec: JobSpec | dict[str, Any]) -> DryRun:
        """What `create` would give: the spec checked, its references resolved, nothing stored. Raises Problem."""
        answer = self._transport.call("POST", "/v1/jobs", params={"dry_run": "true"}, json=_plain(spec))
        return DryRun.model_validate(answer.json())

    def manifest(self, spec: JobSpec | dict[str, Any]) -> list[dict[str, Any]]:
        """The objects that a spec would be made of on Kubernetes, without secrets. Raises Problem, NoObjects."""
        objects = self.dry_run(spec).manifest
        if objects is None:
            raise NoObjects()
        return objects

    def all(
        self,
        *,
        phase: list[str] | None = None,
        stage: str | None = None,
        name: str | None = None,
        metadata: dict[str, str] | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Jobs, newest first; read page by page as they are taken. `limit`: at most so many."""
        filters: dict[str, Any] = {f"metadata.{k}": v for k, v in (metadata or {}).items()}
        pages = self._transport.pages("/v1/jobs", limit=limit, phase=phase, stage=stage, name=name, **filters)
        return (Job.model_validate(entry) for entry in pages)

    def get(self, job: str) -> Job:
        """One job by its id. Raises Problem (404)."""
        return Job.model_validate(self._transport.get(f"/v1/jobs/{job}"))

    def find(self, text: str) -> Job:
        """The one job with this id, name, or beginning of either. Raises Ambiguous with the candidates."""
        if text.startswith("job-") and len(text) == 16:
            return self.get(text)
        named = list(self.all(name=text, limit=2))
        if len(named) == 1:
            return named[0]
        candidates = [
            j
            for j in (self.all(name=text, limit=_NEWEST) if named else self.all(limit=_NEWEST))
            if j.name == text or (not named and (j.name.startswith(text) or j.id.startswith((text, f"job-{text}"))))
        ]
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            raise Ambiguous(f"No job is called `{text}`, and none begins so.")
        shown = "\n".join(f"  {j.id}  {j.name}  {j.phase}" for j in candidates[:8])
        more = f"\n  … and {len(candidates) - 8} more" if len(candidates) > 8 else ""
        raise Ambiguous(f"`{text}` may be any of {len(candidates)} jobs; name one by its id:\n{shown}{more}")

    def newest(self) -> Job:
        """The job that was made last. Raises Ambiguous if there is none."""
        for job in self.all(limit=1):
            return job
        raise Ambiguous("There is no job yet.")

    def pause(self, job: str) -> Job:
        """Saves and stops; `resume` goes on from there. Raises Problem (409: it is over)."""
        return self._wish(job, "pause")

    def resume(self, job: str) -> Job:
        """Goes on from the newest checkpoint. Raises Problem (409)."""
        return self._wish(job, "resume")

    def cancel(self, job: str) -> Job:
        """Stops for ever, saving nothing. Raises Problem (409: it is over)."""
        return self._wish(job, "cancel")

    def retry(self, job: str) -> Job:
        """Sends a failed job back to the queue; it goes on from its newest checkpoint. Raises Problem (409)."""
        return self._wish(job, "retry")

    def clone(self, job: str, changes: dict[str, Any] | None = None, *, key: str | None = None) -> Job:
        """A new job with the same spec but for `changes`, a merge patch (RFC 7396): None takes a field out."""
        return Job.model_validate(self._post(f"/v1/jobs/{job}/clone", changes or {}, key))

    def change(
        self,
        job: str,
        *,
        name: str | None = None,
        metadata: dict[str, str] | None = None,
        priority: int | None = None,
        generation: int | None = None,
    ) -> Job:
        """Changes what may be changed. With `generation`, only if nobody changed it since (412 otherwise)."""
        wanted = {"name": name, "metadata": metadata, "priority": priority}
        headers = {} if generation is None else {"If-Match": f'"{generation}"'}
        body = {k: v for k, v in wanted.items() if v is not None}
        return Job.model_validate(self._transport.call("PATCH", f"/v1/jobs/{job}", json=body, headers=headers).json())

    def delete(self, job: str) -> None:
        """Removes a job that is over, with its checkpoints; its models stay. Raises Problem (409: it is not over)."""
        self._transport.call("DELETE", f"/v1/jobs/{job}")

    def explain(self, job: str) -> Explanation:
        """Why the job is where it is, and what to do about it."""
        return Explanation.model_validate(self._transport.get(f"/v1/jobs/{job}/explain"))

    def confirm_dead(self, job: str, attempt: int) -> Attempt:
        """An admin's word that nothing of an attempt runs, though the cluster cannot tell; the next one may start then.

        Only of a job that is `finishing`; may be repeated. Raises Problem (404; 409: it may still report, or is over).
        """
        answer = self._transport.call("POST", f"/v1/jobs/{job}/attempts/{attempt}/confirm-dead")
        return Attempt.model_validate(answer.json())

    def attempts(self, job: str) -> list[Attempt]:
        """All tries, the first first."""
        return [Attempt.model_validate(a) for a in self._transport.pages(f"/v1/jobs/{job}/attempts")]

    def checkpoints(self, job: str) -> list[Checkpoint]:
        """All checkpoints, also those that were pruned."""
        return [Checkpoint.model_validate(c) for c in self._transport.pages(f"/v1/jobs/{job}/checkpoints")]

    def events(self, job: str, *, after: int = 0) -> list[Event]:
        """Events with a number above `after`, in order."""
        return [Event.model_validate(e) for e in self._transport.pages(f"/v1/jobs/{job}/events", after=after)]

    def metrics(self, job: str, *, name: str | None = None, superseded: bool = False, after: Any = None) -> list[Point]:
        """Points in the order of their arrival; those that a later attempt took again only if `superseded`."""
        path, wanted = f"/v1/jobs/{job}/metrics", "true" if superseded else None
        pages = self._transport.pages(path, name=name, after=after, superseded=wanted, page=1000)
        return [Point.model_validate(p) for p in pages]

    def samples(
        self,
        job: str,
        *,
        step: int | None = None,
        attempt: int | None = None,
        superseded: bool = False,
        after: int | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> list[Sample]:
        """Answers that the job shows, in the order of their arrival; what was made again only if `superseded`."""
        wanted = {"step": step, "attempt": attempt, "after": after, "superseded": "true" if superseded else None}
        order = "-id" if newest_first else None
        pages = self._transport.pages(f"/v1/jobs/{job}/samples", limit=limit, page=50, order=order, **wanted)
        return [Sample.model_validate(s) for s in pages]

    def logs(
        self, job: str, *, rank: int | None = None, attempt: int | None = None, tail: int | None = None
    ) -> list[LogLine]:
        """The last MiB of each rank's log, or its last `tail` lines, in order of rank."""
        answer = self._transport.get(f"/v1/jobs/{job}/logs", rank=rank, attempt=attempt, tail=tail)
        return [LogLine.model_validate(line) for line in answer["data"]]

    def follow_events(self, job: str, *, after: int = 0) -> Iterator[Event]:
        """Events as they happen, until the job is over; survives restarts of the server."""
        for sent in self._follow(job, "events", str(after) if after else ""):
            yield Event.model_validate(sent.data)

    def follow_metrics(self, job: str, *, name: str | None = None, after: str = "") -> Iterator[Point]:
        """Points as they arrive, until the job is over; survives restarts of the server."""
        for sent in self._follow(job, "metrics", after, name=name):
            yield Point.model_validate(sent.data)

    def follow_samples(
        self, job: str, *, step: int | None = None, attempt: int | None = None, after: int = 0
    ) -> Iterator[Sample]:
        """Answers as they arrive, until the job is over; survives restarts of the server."""
        for sent in self._follow(job, "samples", str(after) if after else "", step=step, attempt=attempt):
            yield Sample.model_validate(sent.data)

    def follow_logs(self, job: str, *, rank: int | None = None, attempt: int | None = None) -> Iterator[LogLine]:
        """Log lines as they are written, until the job is over; survives restarts of the server."""
        for sent in self._follow(job, "logs", "", rank=rank, attempt=attempt):
            yield LogLine.model_validate(sent.data)

    def wait(
        self,
        job: str,
        *,
        timeout: float | None = None,
        every: float = 0.5,
        seen: Callable[[Job], None] = lambda job: None,
    ) -> Job:
        """The job once it is over, or paused and meant to stay so; asked for `every` seconds.

        `seen` gets every answer. Raises TimeoutError after `timeout` seconds (None: never), Unreachable, Problem.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            now = self.get(job)
            seen(now)
            if now.final or now.resting:
                return now
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{now.name} ({job}) is still {now.phase} after {timeout:g} s")
            time.sleep(every)

    def _follow(self, job: str, what: str, last_id: str, **params: Any) -> Iterator[Any]:
        return follow(
            self._transport,
            f"/v1/jobs/{job}/{what}/stream",
            params={k: v for k, v in params.items() if v is not None},
            last_id=last_id,
        )

    def _wish(self, job: str, wish: str) -> Job:
        return Job.model_validate(self._transport.call("POST", f"/v1/jobs/{job}/{wish}").json())

    def _post(self, path: str, body: Any, key: str | None) -> Any:
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return self._transport.call("POST", path, json=body, headers=headers).json()


def _plain(spec: JobSpec | dict[str, Any]) -> Any:
    return spec.model_dump(mode="json", exclude_unset=True) if isinstance(spec, JobSpec) else spec
