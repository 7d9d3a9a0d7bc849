"""What a release asks of its API: `rehearse` runs a tiny job to its end, `stop` cancels all jobs and waits for them.

It runs in the API's image, and needs Python's own library alone.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

TINY = {
    "name": "helm-test",
    "stage": {"type": "rehearse", "steps": 5, "seconds_per_step": 0.1},
    "resources": {"cpu": "100m", "memory": "256Mi"},
    "checkpoint": {"every_steps": 2},
}
UNFINISHED = ("queued", "starting", "running", "finishing")
# Seconds for which an API that does not answer is asked again.
PATIENCE = 60.0


def call(method, path, body=None, **headers):
    """The answer's JSON. Asks again while nobody answers. Raises urllib.error.HTTPError for a refusal."""
    request = urllib.request.Request(
        os.environ["RLHF_SERVER"] + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {os.environ['RLHF_API_KEY']}",
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        },
    )
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise
            if time.monotonic() > deadline:
                raise SystemExit(f"the API at {os.environ['RLHF_SERVER']} does not answer: {error}") from None
            time.sleep(1)


def listed(path, **headers):
    """All entries of a list, page by page."""
    after = ""
    while after is not None:
        page = call("GET", path + (f"&after={urllib.parse.quote(after)}" if after else ""), **headers)
        yield from page["data"]
        after = page["next"]


def rehearse():
    """Submits the tiny job, and follows it. The exit status: 0 if it succeeded."""
    job = call("POST", "/v1/jobs", TINY, Idempotency_Key=uuid.uuid4().hex)
    seen = None
    while True:
        if job["phase"] != seen:
            seen = job["phase"]
            print(f"{job['id']}: {seen}", flush=True)
        if seen == "succeeded":
            return 0
        if seen in ("failed", "cancelled"):
            print(json.dumps(call("GET", f"/v1/jobs/{job['id']}/explain"), indent=2))
            return 1
        time.sleep(1)
        job = call("GET", f"/v1/jobs/{job['id']}")


def stop():
    """Cancels the jobs of all projects, and returns when none of them runs any more."""
    wanted = "".join(f"&phase={phase}" for phase in UNFINISHED)
    while True:
        left = 0
        for project in list(listed("/v1/projects?limit=200")):
            of = {"Rlhf_Project": project["name"]}
            for job in list(listed(f"/v1/jobs?limit=200{wanted}", **of)):
                left += 1
                if job["desired"] != "cancel":
                    try:
                        call("POST", f"/v1/jobs/{job['id']}/cancel", **of)
                    except urllib.error.HTTPError as error:
                        # It ended meanwhile.
                        if error.code not in (404, 409):
                            raise
        print(f"jobs that are not over: {left}", flush=True)
        if not left:
            return 0
        time.sleep(1)


try:
    sys.exit({"rehearse": rehearse, "stop": stop}[sys.argv[1]]())
except urllib.error.HTTPError as refused:
    sys.exit(f"{refused.url} was refused with {refused.code}: {refused.read().decode(errors='replace')}")
