"""Scores from a real HTTP service, as it should be and in all the ways in which it fails."""

import asyncio
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse

from tests.rl.test_rewards import Row
from worker.contract.rewards import ServiceTerm
from worker.errors import BadData, BadSpec, Stopped, WorkerFailure
from worker.rl.rewards.service import Service

pytestmark = pytest.mark.quick


class Server:
    """A service on a free port whose answers the test chooses; it keeps what it was asked."""

    def __init__(self) -> None:
        self.begin()
        app = FastAPI()

        @app.post("/score")
        async def _(request: Request) -> Any:
            self.asked.append(await request.json())
            return self.answer(self.asked[-1])

        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/score"
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Forgets what it was asked, and scores by length."""
        self.asked: list[Any] = []
        self.answer: Callable[[Any], Any] = lambda asked: {"scores": [float(len(a)) for a in asked["answers"]]}

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


@pytest.fixture
def server(running: Server) -> Server:
    running.begin()
    return running


def service(url: str, **more: Any) -> Service:
    fields = {"timeout": 5.0, "patience": 1.0} | {k: v for k, v in more.items() if k in ServiceTerm.model_fields}
    hooks = {k: v for k, v in more.items() if k not in fields}
    return Service(ServiceTerm.model_validate({"service": url, **fields}), "stage.reward.terms.0", **hooks)


def ask(service: Service, answers: list[str], rows: list[Row] | None = None) -> list[float]:
    return service(rows or [Row()] * len(answers), answers, [1] * len(answers))


def raw(content: str, status: int = 200, **headers: str) -> Callable[[Any], Response]:
    return lambda asked: Response(content, status, headers=headers, media_type="application/json")


def test_answers_go_out_in_calls_of_the_specs_size_and_scores_come_back_in_order(server: Server) -> None:
    assert ask(service(server.url, batch=2), ["a", "bb", "ccc", "", "eeeee"]) == [1, 2, 3, 0, 5]
    assert [asked["answers"] for asked in server.asked] == [["a", "bb"], ["ccc", ""], ["eeeee"]]


def test_a_prompt_is_a_text_where_it_was_one_and_turns_where_there_are_several(server: Server) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    ask(service(server.url), ["x", "y"], [Row(messages=turns[1:]), Row(messages=turns)])
    assert server.asked == [{"prompts": ["Hi", turns], "answers": ["x", "y"]}]


def test_any_character_reaches_the_service(server: Server) -> None:
    ask(service(server.url), ["\N{GRINNING FACE} ü \x00 \ud800"])
    assert server.asked[0]["answers"] == ["\N{GRINNING FACE} ü \x00 \ud800"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"scores": [1.0]}', "gives 1 scores for 2 answers"),
        ('{"scores": [1, 2, 3]}', "gives 3 scores for 2 answers"),
        ('{"scores": [1, NaN]}', "gives 'nan' as score 2; it must be a finite number"),
        ('{"scores": [Infinity, 1]}', "gives 'inf' as score 1"),
        ('{"scores": [1e999, 1]}', "gives 'inf' as score 1"),
        ('{"scores": [1, null]}', "gives 'None' as score 2"),
        ('{"scores": [1, "2"]}', "gives '2' as score 2"),
        ('{"scores": [1, true]}', "gives 'True' as score 2"),
        ('{"scores": [1, 1' + "0" * 400 + "]}", "as score 2"),
        ('{"scores": {"0": 1}}', 'must answer {"scores"'),
        ("[1, 2]", 'must answer {"scores"'),
        ("<html>", "answers what is not JSON: <html>"),
        ("[" * 100_000, "answers what is not JSON"),
        ("", "answers what is not JSON"),
    ],
)
def test_an_answer_that_is_no_score_ends_the_job_at_once(server: Server, content: str, said: str) -> None:
    server.answer = raw(content)
    with pytest.raises(BadData) as error:
        ask(service(server.url), ["a", "b"])
    assert f"the reward service {server.url} " in error.value.message
    assert said in error.value.message
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [302, 400, 401, 403, 422])
def test_a_refusal_ends_the_job_at_once_with_the_services_words(server: Server, status: int) -> None:
    server.answer = raw("no such key", status, location="http://127.0.0.1:9/")
    with pytest.raises(BadData, match=f"answers {status}: no such key"):
        ask(service(server.url), ["a"])
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [404, 503])
def test_a_service_that_is_away_for_a_while_is_asked_again_and_that_is_told_once(server: Server, status: int) -> None:
    def answer(asked: Any) -> Any:
        return Response("later", status) if len(server.asked) < 3 else {"scores": [7]}

    server.answer, told = answer, []
    assert ask(service(server.url, patience=60.0, tell=told.append), ["a"]) == [7]
    assert len(server.asked) == 3
    assert len(told) == 1 and f"answers {status}: later; it is asked again for 60 s" in told[0]


def test_when_patience_is_over_the_attempt_fails_and_says_what_was_last_heard(server: Server) -> None:
    server.answer = raw("out of order", 503)
    with pytest.raises(WorkerFailure) as error:
        ask(service(server.url, patience=0.6), ["a"])
    assert not isinstance(error.value, BadData)
    assert "answers 503: out of order, and so all the time for 0.6 s" in error.value.message
    assert len(server.asked) > 1


def test_a_service_that_nobody_listens_for_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}/"
    with pytest.raises(WorkerFailure, match=r"cannot be reached \(ConnectError"):
        ask(service(url, patience=0.5), ["a"])


def test_a_call_that_takes_too_long_is_given_up_and_made_again(server: Server) -> None:
    async def slowly() -> Any:
        yield b'{"scores": '
        for _ in range(200 if len(server.asked) == 1 else 0):  # a blank now and then: never silent for long
            yield b" "
            await asyncio.sleep(0.02)
        yield b"[3]}"

    server.answer = lambda asked: StreamingResponse(slowly())
    told: list[str] = []
    assert ask(service(server.url, timeout=0.3, patience=60.0, tell=told.append), ["a"]) == [3]
    assert len(server.asked) == 2 and "does not finish its answer in 0.3 s" in told[0]


def test_a_service_that_says_nothing_at_all_is_given_up_after_the_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(WorkerFailure, match=r"does not answer in 0\.2 s"):
            ask(service(url, timeout=0.2, patience=0.1), ["a"])


def test_who_waits_for_a_service_can_be_stopped(server: Server) -> None:
    server.answer = raw("", 503)

    def between() -> None:
        if len(server.asked) > 1:
            raise Stopped

    begun = time.monotonic()
    with pytest.raises(Stopped):
        ask(service(server.url, patience=600.0, between=between), ["a"])
    assert time.monotonic() - begun < 60


def test_a_key_in_the_services_query_is_sent_and_never_told(server: Server) -> None:
    server.answer = raw("{}")
    with pytest.raises(BadData) as error:
        ask(service(f"{server.url}?key=hidden"), ["a"])
    assert "hidden" not in error.value.message


def test_an_impossible_url_is_refused_with_its_place_in_the_spec() -> None:
    with pytest.raises(BadSpec, match=r"stage\.reward\.terms\.0\.service"):
        service("http://\N{SNOWMAN}.example/")


def test_finite_scores_of_any_kind_are_taken(server: Server) -> None:
    server.answer = raw('{"scores": [1, -2.5, 1e-300, 0], "model": "v2"}')
    found = ask(service(server.url), ["a", "b", "c", "d"])
    assert found == [1, -2.5, 1e-300, 0] and all(math.isfinite(score) for score in found)
