"""What a job's model answers: prompt, answer and reward, with each token shaded by how far it is from the reference."""

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from client.api import Client
from client.commands.follow import left_running
from client.commands.options import AsJson, JobOrNewest, Server, job_or_newest
from client.records import Job, Sample
from client.terminal import as_json, escape, out, plain, print_json, say

app = typer.Typer()

# Of an iteration, for people; programs get all.
_SHOWN = 5
_LONGEST_PROMPT = 400
# Nats from which on a token is shaded, above and below 0. Backgrounds bear their own colour of letters: they are to be
# read on dark and on light.
_ABOVE = ((2.0, "black on #e06666"), (1.0, "black on #f6b26b"), (0.5, "black on #ffd966"), (0.1, "black on #fff2cc"))
_BELOW = ((1.0, "black on #6fa8dc"), (0.5, "black on #9fc5e8"), (0.1, "black on #cfe2f3"))


@app.command()
def samples(
    server: Server,
    job: JobOrNewest = None,
    *,
    step: Annotated[int | None, typer.Option(min=0, help="Of this iteration; absent: the newest.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on with those that come, until the end.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, help=f"Of an iteration; absent: {_SHOWN}, and with --json all."),
    ] = None,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also those that a later attempt made again.")
    ] = False,
    json_lines: AsJson = False,
) -> None:
    """What a job's model answers, and what the answers are worth; --json has them whole."""
    found = job_or_newest(server, job)
    if watch:
        with left_running(found):
            _watch(server, found, step, limit, as_lines=json_lines)
        return
    if step is None:
        newest = server.jobs.samples(found.id, superseded=superseded, newest_first=True, limit=1)
        step = newest[0].step if newest else None
    of_step = [] if step is None else server.jobs.samples(found.id, step=step, superseded=superseded)
    if json_lines:
        print_json(of_step[:limit])
    elif of_step:
        _show_step(of_step, limit or _SHOWN)
    else:
        say(f"[dim]{escape(found.name)} has no samples{'' if step is None else f' of step {step}'} yet.[/]")


def _watch(server: Client, job: Job, step: int | None, limit: int | None, *, as_lines: bool) -> None:
    """Those of the newest iteration, and then all that come."""
    before, count = -1, 0
    for sample in server.jobs.follow_samples(job.id, step=step, after=_before_newest(server, job)):
        if sample.step != before:
            before, count = sample.step, 0
            if not as_lines:
                out.rule(f"step {sample.step}", align="left", style="dim")
                if out.is_terminal:
                    out.print(_legend())
        count += 1
        if as_lines:
            if limit is None or count <= limit:
                print(as_json(sample), flush=True)
        elif count <= (limit or _SHOWN):
            _show(sample)


def _before_newest(server: Client, job: Job) -> int:
    """The row after which the newest iteration's samples come; 0: there are none yet."""
    newest = server.jobs.samples(job.id, newest_first=True, limit=1)
    if not newest:
        return 0
    return server.jobs.samples(job.id, step=newest[0].step, limit=1)[0].id - 1


def _show_step(of_step: list[Sample], most: int) -> None:
    out.rule(summary(of_step), align="left", style="dim")
    if out.is_terminal and any(sample.kl for sample in of_step):
        out.print(_legend())
    for sample in of_step[:most]:
        _show(sample)
    if len(of_step) > most:
        say(f"[dim]and {len(of_step) - most} more: --limit {len(of_step)}[/]")


def summary(of_step: list[Sample]) -> str:
    """One line on the samples of an iteration, of which there is at least one."""
    rewards = [sample.reward for sample in of_step]
    parts = [
        f"step {of_step[0].step}",
        f"{len(of_step)} answers",
        f"reward {_mean(rewards):.3f} ({min(rewards):.3f} to {max(rewards):.3f})",
        f"KL {_mean(sum(sample.kl) for sample in of_step):.2f} nats",
        f"{_mean(sample.ended for sample in of_step):.0%} ended by themselves",
    ]
    return " · ".join(parts)


def _show(sample: Sample) -> None:
    head = Text.assemble((f"#{sample.index}", "bold"), "  reward ")
    colour = "green" if sample.reward > 0 else "red" if sample.reward < 0 else "default"
    head.append(f"{sample.reward:.3f}", f"bold {colour}")
    for name, value in sample.terms.items():
        head.append(f"   {plain(name)} {value:.3f}", "dim")
    if sample.kl:
        head.append(f"   KL {sum(sample.kl):.2f}", "dim")
    if not sample.ended:
        head.append("   cut off at the limit", "yellow")
    if sample.superseded:
        head.append(f"   superseded, of attempt {sample.attempt}", "yellow")
    out.print(head, soft_wrap=True)
    out.print(Padding(Text(_shortened(plain(sample.prompt)), style="dim"), (0, 0, 0, 4)))
    out.print(Padding(shaded(sample), (0, 0, 1, 4)))


def shaded(sample: Sample) -> Text:
    """The answer, token by token: the darker, the further its probability is from the reference's."""
    text = Text()
    for token, nats in zip(sample.tokens, sample.kl, strict=False):
        text.append(plain(token), shade(nats))
    spoken = "".join(sample.tokens)
    if not spoken:
        text.append(plain(sample.answer))
    elif sample.answer.startswith(spoken):
        # Of a long answer, only the first tokens are there one by one.
        text.append(plain(sample.answer[len(spoken) :]))
    return text


def shade(nats: float) -> str:
    """A token's style: from yellow to red where the actor says it more than the reference, blue where less."""
    for least, style in _ABOVE if nats > 0 else _BELOW:
        if abs(nats) >= least:
            return style
    return ""


def _legend() -> Text:
    legend = Text("nats a token, from the reference: ", style="dim")
    for least, style in _BELOW:
        legend.append(f" -{least:g} ", style)
    for least, style in reversed(_ABOVE):
        legend.append(f" {least:g} ", style)
    return legend


def _shortened(text: str) -> str:
    half = _LONGEST_PROMPT // 2
    return text if len(text) <= _LONGEST_PROMPT else f"{text[:half]} … {text[-half:]}"


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
