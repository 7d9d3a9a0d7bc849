"""Spec files as people write them."""

from pathlib import Path
from typing import Any

import pytest

from client.specfiles import BadFile, change, parse, read

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr: 1e-4", {"lr": 1e-4}),
        ("lr: 2.5E-5", {"lr": 2.5e-5}),
        ("lr: .5", {"lr": 0.5}),
        ("steps: 010", {"steps": 10}),
        ("name: no", {"name": "no"}),
        ("name: on", {"name": "on"}),
        ("packing: true", {"packing": True}),
        ("start: 12:30", {"start": "12:30"}),
        ("day: 2026-01-02", {"day": "2026-01-02"}),
        ("cpu: 0x10", {"cpu": "0x10"}),
        ("a: ~", {"a": None}),
        ("v: 1.2.3", {"v": "1.2.3"}),
        ('{"a": [1, 2.0, "x", null, true]}', {"a": [1, 2.0, "x", None, True]}),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_yaml_reads_as_people_mean_it(text: str, value: dict[str, Any]) -> None:
    assert parse(text, "spec") == value
    assert [type(v) for v in parse(text, "spec").values()] == [type(v) for v in value.values()]


def test_a_key_given_twice_is_refused_with_its_line() -> None:
    with pytest.raises(BadFile, match=r"x\.yaml, line 3: `steps` is given twice"):
        parse("stage:\n  steps: 1\n  steps: 2\n", "x.yaml")


def test_a_key_given_twice_in_json_is_refused_by_its_name() -> None:
    with pytest.raises(BadFile, match=r"x\.json: `steps` is given twice"):
        parse('{"stage": {"steps": 1,\n\t"steps": 2}}', "x.json")


def test_broken_yaml_is_refused_with_its_line() -> None:
    with pytest.raises(BadFile, match=r"x\.yaml, line 2"):
        parse("a: [1,\nb: }", "x.yaml")


def test_yaml_makes_no_python_objects() -> None:
    with pytest.raises(BadFile):
        parse("!!python/object/apply:os.getcwd []", "x.yaml")


def test_settings_reach_into_the_spec_and_leave_the_rest(tmp_path: Path) -> None:
    spec = {"stage": {"type": "sft", "optimizer": {"lr": 1.0, "clip": 2.0}}}
    changed = change(spec, ["stage.optimizer.lr=1e-3", "retry.max_attempts=5", "stage.lora={rank: 4}", "name="])
    assert changed == {
        "stage": {"type": "sft", "optimizer": {"lr": 1e-3, "clip": 2.0}, "lora": {"rank": 4}},
        "retry": {"max_attempts": 5},
        "name": None,
    }
    assert spec["stage"]["optimizer"]["lr"] == 1.0  # type: ignore[index]


@pytest.mark.parametrize("setting", ["stage.steps", "=3", "a..b=3", ".a=1"])
def test_a_setting_that_is_none_says_how_it_is_written(setting: str) -> None:
    with pytest.raises(BadFile, match="path=value"):
        change({}, [setting])


def test_a_file_that_is_not_there_or_holds_no_object_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="There is no file"):
        read(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(BadFile, match="holds no spec"):
        read(str(tmp_path / "list.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="cannot be read"):
        read(str(tmp_path / "bytes.yaml"))
