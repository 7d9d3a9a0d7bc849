"""What a job hands over gives the logits that training had."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.model.conftest import GPT2, LLAMA, input_at, smollm2_gguf, spec_of
from worker.channel import Channel
from worker.context import Context
from worker.contract import manifest
from worker.contract.order import Input, Order
from worker.contract.protocol import Output
from worker.contract.spec import JobSpec
from worker.models import Loaded, load
from worker.outputs import save_outputs

TIED = {**LLAMA, "tie_word_embeddings": True}
IDS = torch.arange(3, 60)[None]  # [1, time]


def handed_over(store: Path, spec: JobSpec, inputs: dict[str, Input], loaded: Loaded) -> list[Output]:
    order = Order(
        job="job-a", attempt=2, spec=spec, inputs=inputs, store=store.as_uri(),
        control_url_file="-", token_file="-", termination_file="-", log_folder="-",
    )  # fmt: skip
    context = Context(order=order, rank=0, world=1, channel=Channel.__new__(Channel), store=store)
    return save_outputs(context, loaded, loaded.model.state_dict(), step=7)


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    out: Tensor = model.eval()(ids).logits
    return out.float()


def disturb(loaded: Loaded, size: float) -> None:
    """Moves the trained weights, as training would."""
    generator = torch.Generator().manual_seed(3)
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * size
            parameter.data += noise.to(parameter.dtype)


@pytest.mark.parametrize("config", [LLAMA, TIED, GPT2], ids=["llama", "tied", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_reloads_with_the_same_bits(
    tiny: Callable[..., Loaded], tmp_path: Path, config: dict[str, Any], precision: str
) -> None:
    loaded = tiny(config, precision=precision)
    disturb(loaded, 0.01)
    (output,) = handed_over(tmp_path, spec_of({"config": config}, precision=precision), {}, loaded)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / output.path)
    assert torch.equal(logits(again), logits(loaded.model))
    assert manifest.verify(tmp_path / output.path).sha256 == output.sha256
    assert output.path == "jobs/job-a/a2/outputs/model"
    assert manifest.read(tmp_path / output.path).total_bytes == output.bytes


def test_the_folder_has_all_that_others_need_and_no_pickle(tiny: Callable[..., Loaded], tmp_path: Path) -> None:
    (output,) = handed_over(tmp_path, spec_of({"config": LLAMA}), {}, tiny())
    folder = tmp_path / output.path
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "lineage.json", "manifest.json",
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == (
        "<|im_start|>user\na<|im_end|>\n"
    )
    config = json.loads((folder / "config.json").read_text())
    assert (config["pad_token_id"], config["eos_token_id"], config["use_cache"]) == (256, 258, True)


def test_tied_weights_are_written_once(tiny: Callable[..., Loaded], tmp_path: Path) -> None:
    (output,) = handed_over(tmp_path, spec_of({"config": TIED}), {}, tiny(TIED))
    with safe_open(tmp_path / output.path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_an_answer_also_ends_where_the_template_ends_a_turn(tiny: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = tiny()
    loaded.model.generation_config.eos_token_id = 10
    (output,) = handed_over(tmp_path, spec_of({"config": LLAMA}), {}, loaded)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / output.path)
    assert again.generation_config.eos_token_id == [10, 258]
    assert loaded.model.generation_config.eos_token_id == 10


def test_lineage_says_where_a_model_came_from(tiny: Callable[..., Loaded], tmp_path: Path) -> None:
    spec = spec_of({"config": LLAMA})
    data = Input(reference="files/x", kind="file", location="/x", sha256="a" * 64)
    (output,) = handed_over(tmp_path, spec, {"stage.data.train": data}, tiny())
    lineage = json.loads((tmp_path / output.path / "lineage.json").read_text())
    assert (lineage["job"], lineage["attempt"], lineage["step"]) == ("job-a", 2, 7)
    assert lineage["inputs"] == {"stage.data.train": {"reference": "files/x", "kind": "file", "sha256": "a" * 64}}
    assert JobSpec.model_validate(lineage["spec"]) == spec
    assert lineage["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize("config", [LLAMA, TIED, GPT2], ids=["llama", "tied", "gpt2"])
def test_lora_hands_over_the_merged_model_and_the_adapter(
    tiny: Callable[..., Loaded], tmp_path: Path, config: dict[str, Any]
) -> None:
    base = tiny(config)
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    spec, source = spec_of(str(tmp_path / "base"), lora={"rank": 4}), input_at(tmp_path / "base")
    loaded = load(spec, {"stage.model": source}, tmp_path)
    before = logits(loaded.model)
    disturb(loaded, 0.05)
    trained = logits(loaded.model)
    kept = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    model, adapter = handed_over(tmp_path, spec, {"stage.model": source}, loaded)

    assert (trained - before).abs().max() > 0.01
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / model.path)
    assert (logits(merged) - trained).abs().max() <= 1e-5 * trained.abs().max()
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / adapter.path)
    assert torch.equal(logits(again), trained)
    # The live model is as it was: training may go on.
    assert all(torch.equal(tensor, kept[name]) for name, tensor in loaded.model.state_dict().items())
    assert torch.equal(logits(loaded.model), trained)
    if config is not LLAMA:
        with safe_open(tmp_path / model.path / "model.safetensors", "pt") as file:
            assert "lm_head.weight" not in set(file.keys())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_real_model_with_lora_is_handed_over_as_trained(
    smollm2_folder: Path, tmp_path: Path, precision: str
) -> None:
    """bf16: the merged model is fp32, and compared with base and adapters computed in fp32 too."""
    store = tmp_path
    (store / "cache").mkdir()
    (store / "cache" / "models").symlink_to(smollm2_folder.parent)
    source = input_at(smollm2_gguf())
    spec = spec_of(str(smollm2_gguf()), lora={}, precision=precision)
    loaded = load(spec, {"stage.model": source}, store)
    disturb(loaded, 1e-3)
    model, adapter = handed_over(store, spec, {"stage.model": source}, loaded)
    ids = loaded.tokenizer("The capital of France is Paris, and that of Italy is Rome.", return_tensors="pt").input_ids
    merged = AutoModelForCausalLM.from_pretrained(store / model.path)
    base = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=loaded.model.dtype).float()
    trained = PeftModel.from_pretrained(base, store / adapter.path)
    expected = logits(trained, ids)
    if precision == "fp32":
        assert torch.equal(expected, logits(loaded.model, ids))
    assert isinstance(merged, PreTrainedModel)
    assert merged.dtype == torch.float32
    assert merged.config.pad_token_id == 0
    assert (logits(merged, ids) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_real_model_is_handed_over_with_the_same_bits(smollm2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(smollm2_folder.parent)
    source = input_at(smollm2_gguf())
    spec = spec_of(str(smollm2_gguf()))
    loaded = load(spec, {"stage.model": source}, tmp_path)
    (output,) = handed_over(tmp_path, spec, {"stage.model": source}, loaded)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / output.path)
    assert torch.equal(logits(again), logits(loaded.model))
    assert again.config.pad_token_id == again.generation_config.pad_token_id == 0
