"""Reward services: workers call only those that the settings allow."""

from pathlib import Path

import pytest

from api.services import allowed, unfit_services
from api.settings import BadSettings, Settings, load
from worker.contract.check import parse_spec

pytestmark = pytest.mark.quick


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data=tmp_path, allowed_services="https://rewards.example/v1 http://10.0.0.7:8080")


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("https://rewards.example/v1", True),
        ("https://rewards.example/v1/helpful?key=x", True),
        ("https://rewards.example:443/v1/helpful", True),
        ("http://10.0.0.7:8080/anything", True),
        ("http://127.0.0.1:9000/score", True),
        ("http://localhost/score", True),
        ("https://rewards.example/v10", False),
        ("https://rewards.example/v1/../admin", False),
        ("https://rewards.example", False),
        ("http://rewards.example/v1", False),
        ("https://rewards.example.evil.example/v1", False),
        ("http://10.0.0.7/anything", False),
        ("http://169.254.169.254/latest/meta-data", False),
    ],
)
def test_a_service_must_lie_under_an_allowed_url(settings: Settings, url: str, may: bool) -> None:
    assert allowed(url, settings) is may


def unfit(settings: Settings, service: str) -> str:
    """What is wrong with the service of a spec's second term."""
    role = {"model": "models/sft"}
    terms = [{"function": "length"}, {"service": service}]
    stage = {"type": "ppo", "actor": role, "critic": role, "reward": {"terms": terms}, "data": "files/x"}
    (problem,) = unfit_services(parse_spec({"stage": stage}), settings)
    assert problem.path == "stage.reward.terms.1.service"
    return problem.message


def test_a_spec_with_another_service_is_refused_with_its_path_and_what_is_allowed(settings: Settings) -> None:
    assert "https://rewards.example/v1" in unfit(settings, "http://169.254.169.254/latest")


@pytest.mark.parametrize("url", ["http://localhost/a\nb", "http://local\thost/", "http://127.0.0.1/\x7f"])
def test_a_url_that_a_worker_could_not_call_is_refused(settings: Settings, url: str) -> None:
    assert "is no URL" in unfit(settings, url)


def test_a_setting_that_is_no_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="ALLOWED_SERVICES.*rewards.example"):
        load(data=tmp_path, allowed_services="rewards.example")
