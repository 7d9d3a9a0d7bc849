"""Loading models: the same on every rank, from what is safe to read, or a sentence that says why not."""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.model.conftest import GPT2, LLAMA, input_at, spec_of
from worker import checkpoint
from worker.contract.check import parse_spec
from worker.contract.manifest import file_sha256
from worker.data import sample
from worker.dialogue import CHATML
from worker.errors import BadSpec, OutOfMemory
from worker.gguf import converted, gguf_in
from worker.losses import token_loss_sum
from worker.models import Loaded, load
from worker.packing import collate
from worker.tokenizers import bytes_tokenizer


@pytest.fixture
def folder(tiny: Callable[..., Loaded], tmp_path: Path) -> Path:
    """A tiny model's folder, as transformers writes it."""
    loaded = tiny()
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def read(path: Path, store: Path, **fields: Any) -> Loaded:
    return load(spec_of(str(path), **fields), {"stage.model": input_at(path)}, store)


def weights(loaded: Loaded) -> dict[str, torch.Tensor]:
    return loaded.model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_from_scratch_has_weights_of_its_seed_alone(tiny: Callable[..., Loaded]) -> None:
    torch.manual_seed(1)
    first = weights(tiny(seed=5))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(first, weights(tiny(seed=5)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(first, weights(tiny(seed=6)))


def test_precision_is_the_specs_and_frequencies_keep_all_their_digits(tiny: Callable[..., Loaded]) -> None:
    exact, rounded = tiny(), tiny(precision="bf16")
    assert {p.dtype for p in exact.model.parameters()} == {torch.float32}
    assert {p.dtype for p in rounded.model.parameters()} == {torch.bfloat16}
    assert same(dict(exact.model.named_buffers()), dict(rounded.model.named_buffers()))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "lama"}, r"model_type: lama is no architecture .*did you mean llama"),
        ({**LLAMA, "hiden_size": 3}, r"config.hiden_size: llama has no such field; did you mean `hidden_size`"),
        ({**LLAMA, "hidden_size": 33}, r"config: .*33.* is not a multiple of the number of attention heads"),
        ({**LLAMA, "hidden_size": "big"}, r"config: .*'hidden_size' expected int, got str"),
        ({**LLAMA, "num_attention_heads": 0}, r"config.num_attention_heads: makes no model"),
        ({**LLAMA, "num_key_value_heads": 0}, r"config.num_key_value_heads: makes no model"),
        ({**LLAMA, "head_dim": 0}, r"config.head_dim: makes no model"),
        ({**LLAMA, "intermediate_size": -5}, r"config.intermediate_size: makes no model"),
        ({**LLAMA, "head_dim": 0, "num_key_value_heads": 0}, r"config: makes no model"),
        ({**GPT2, "n_head": 0}, r"config.n_head: makes no model"),
        ({**LLAMA, "attention_dropout": 7}, r"config.attention_dropout: must be a probability, from 0 to 1; got 7"),
        ({**LLAMA, "attention_dropout": -0.5}, r"config.attention_dropout: must be a probability"),
        ({**GPT2, "resid_pdrop": 1.5}, r"config.resid_pdrop: must be a probability"),
    ],
)
def test_a_configuration_that_makes_no_model_is_told_by_its_field(
    tiny: Callable[..., Loaded], config: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadSpec, match=told):
        tiny(config)


@pytest.mark.parametrize(
    "special", [{"pad_token_id": -1}, {"pad_token_id": 9999}, {"eos_token_id": [2, 128009]}, {"bos_token_id": 50256}]
)
def test_special_tokens_of_another_vocabulary_give_way_to_the_tokenizers_own(
    tiny: Callable[..., Loaded], special: dict[str, Any]
) -> None:
    loaded = tiny({**LLAMA, **special})
    (name,) = special
    assert getattr(loaded.model.config, name) == getattr(loaded.tokenizer, name)


def test_a_model_from_scratch_that_does_not_fit_into_memory_is_no_mistake_in_its_spec(
    tiny: Callable[..., Loaded],
) -> None:
    with pytest.raises(OutOfMemory, match=r"stage.model.config: a model of these sizes does not fit into memory"):
        tiny({**LLAMA, "hidden_size": 10**12, "head_dim": 8})


def test_a_length_that_the_model_has_no_positions_for_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=r"stage.max_length: the model has 2048 positions; write at most 2048"):
        read(folder, tmp_path, max_length=2049)


def test_a_folder_loads_with_the_weights_it_was_saved_with(
    tiny: Callable[..., Loaded], folder: Path, tmp_path: Path
) -> None:
    assert same(weights(tiny()), weights(read(folder, tmp_path)))


def test_a_folder_that_has_changed_since_is_refused(folder: Path, tmp_path: Path) -> None:
    source = input_at(folder)
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(BadSpec, match="has changed since the job was accepted"):
        load(spec_of(str(folder)), {"stage.model": source}, tmp_path)


def test_weights_are_never_read_from_pickles(tiny: Callable[..., Loaded], folder: Path, tmp_path: Path) -> None:
    torch.save(weights(tiny()), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadSpec, match=r"has no .safetensors; weights are never read from pickles"):
        read(folder, tmp_path)


def test_code_that_comes_with_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "evil.Odd", "AutoModelForCausalLM": "evil.OddModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(BadSpec, match="stage.model: "):
        read(folder, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "config.json").unlink(), "is not a model's folder; it has no config.json"),
        (shutil.rmtree, "is not there any more"),
        (lambda f: (f / "model.safetensors").write_bytes(b"short"), "cannot be read"),
        (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "it holds an adapter: give the merged model"),
        (
            lambda f: (f / "adapter_config.json").write_text("{}"),
            "holds an adapter beside a model: give the merged model",
        ),
    ],
)
def test_a_folder_that_is_no_model_is_told(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], Any], told: str
) -> None:
    source = input_at(folder)
    spoil(folder)
    if folder.exists():
        source = input_at(folder)
    with pytest.raises(BadSpec, match=told):
        load(spec_of(str(folder)), {"stage.model": source}, tmp_path)


def test_dialogues_need_a_chat_template_and_texts_do_not(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BadSpec, match="has no chat template, so it cannot be trained on dialogues"):
        read(folder, tmp_path)
    spec = parse_spec({"stage": {"type": "pretrain", "model": str(folder), "data": "files/x"}})
    load(spec, {"stage.model": input_at(folder)}, tmp_path)


def test_padding_gets_a_token_that_does_not_end_a_text(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    loaded = read(folder, tmp_path)
    assert loaded.tokenizer.pad_token_id != loaded.tokenizer.eos_token_id
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id
    assert loaded.model.generation_config.pad_token_id == loaded.tokenizer.pad_token_id
    assert len(loaded.notes) == 1
    assert "is now <|im_start|>" in loaded.notes[0]


def test_with_lora_only_adapters_are_trained_and_not_on_the_output_layer(
    tiny: Callable[..., Loaded], folder: Path, tmp_path: Path
) -> None:
    loaded = read(folder, tmp_path, lora={"rank": 4})
    assert isinstance(loaded.model, PeftModel)
    trained = [name for name, p in loaded.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert {name.split(".")[-4] for name in trained} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert same(weights(loaded), weights(read(folder, tmp_path, lora={"rank": 4})))


def test_lora_fits_the_transposed_layers_of_gpt2(tiny: Callable[..., Loaded], tmp_path: Path) -> None:
    made = tiny(GPT2)
    made.model.save_pretrained(tmp_path / "gpt2")
    made.tokenizer.save_pretrained(tmp_path / "gpt2")
    loaded = read(tmp_path / "gpt2", tmp_path, lora={"rank": 4, "targets": ["c_attn", "c_proj"]})
    assert {n.split(".")[-4] for n, p in loaded.model.named_parameters() if p.requires_grad} == {"c_attn", "c_proj"}


def test_lora_targets_that_are_not_there_are_told_with_those_that_are(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=r"stage.lora.targets: .*no linear layer `query`; it has: down_proj, .*q_proj"):
        read(folder, tmp_path, lora={"targets": ["q_proj", "query"]})


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_gradient_checkpointing_changes_memory_and_no_gradient(
    folder: Path, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    batch = collate([[sample(range(20), [True] * 20)]], pad_id=256)

    def gradients(**fields: Any) -> dict[str, torch.Tensor]:
        model = read(folder, tmp_path, lora=lora, **fields).model
        token_loss_sum(model, batch).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, saved = gradients(), gradients(gradient_checkpointing=True)
    assert plain
    assert same(plain, saved)


def tiny_gguf(path: Path) -> Path:
    """A llama of one layer with a vocabulary of bytes, whose padding is what ends a text."""
    writer = GGUFWriter(path, "llama")
    width, inner, heads, words = (
        32,
        64,
        4,
        [*bytes_tokenizer().convert_ids_to_tokens(range(256)), "<|endoftext|>", "</s>", "AB"],
    )
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * 256 + [3, 3, 1])
    writer.add_token_merges([f"{words[65]} {words[66]}"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_pad_token_id(257)
    writer.add_chat_template(CHATML)
    draw = np.random.default_rng(1)
    for name, shape in {
        "token_embd.weight": (len(words), width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ffn_norm.weight": (width,),
        **{f"blk.0.attn_{which}.weight": (width, width) for which in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (inner, width),
        "blk.0.ffn_up.weight": (inner, width),
        "blk.0.ffn_down.weight": (width, inner),
    }.items():
        writer.add_tensor(name, draw.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _convert(gguf: Path, cache: Path, done: Any) -> None:
    try:
        done.put([str(part) for part in converted(gguf, cache)])
    except BaseException as error:
        done.put([repr(error), ""])
        raise


def test_a_gguf_converts_once_even_for_two_at_the_same_time(tmp_path: Path) -> None:
    gguf, cache = tiny_gguf(tmp_path / "a.gguf"), tmp_path / "cache"
    processes = multiprocessing.get_context("spawn")
    done = processes.Queue()
    both = [processes.Process(target=_convert, args=(gguf, cache, done)) for _ in range(2)]
    for process in both:
        process.start()
    (first, one_note), (second, other_note) = done.get(timeout=300), done.get(timeout=300)
    for process in both:
        process.join(timeout=60)
    assert first == second
    assert sorted([one_note, other_note]) == ["None", "a.gguf was converted to safetensors, once for all jobs."]
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [file_sha256(gguf)]


def test_a_converted_gguf_with_one_bit_flipped_is_converted_anew(tmp_path: Path) -> None:
    gguf, cache = tiny_gguf(tmp_path / "a.gguf"), tmp_path / "cache"
    folder, _ = converted(gguf, cache)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again, note = converted(gguf, cache)
    assert (again, (again / "model.safetensors").read_bytes()) == (folder, whole)
    assert note is not None
    assert converted(gguf, cache) == (folder, None)


def _die_converting(gguf: Path, cache: Path) -> None:
    checkpoint.seal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    converted(gguf, cache)


def test_what_a_killed_conversion_left_is_gone_after_the_next(tmp_path: Path) -> None:
    gguf, cache = tiny_gguf(tmp_path / "a.gguf"), tmp_path / "cache"
    killed = multiprocessing.get_context("spawn").Process(target=_die_converting, args=(gguf, cache))
    killed.start()
    killed.join(timeout=300)
    assert killed.exitcode == -signal.SIGKILL
    assert [path for path in cache.iterdir() if path.is_dir()]
    folder, _ = converted(gguf, cache)
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


def test_who_waits_for_anothers_conversion_says_so(tmp_path: Path) -> None:
    gguf, cache = tiny_gguf(tmp_path / "a.gguf"), tmp_path / "cache"
    cache.mkdir()
    lock = os.open(cache / f".{file_sha256(gguf)}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    looks: list[bool] = []

    def waiting() -> None:
        looks.append(True)
        if len(looks) == 3:
            fcntl.flock(lock, fcntl.LOCK_UN)

    given_up = threading.Timer(60, fcntl.flock, (lock, fcntl.LOCK_UN))
    given_up.start()
    converted(gguf, cache, waiting=waiting)
    given_up.cancel()
    os.close(lock)
    assert len(looks) == 3


def test_a_gguf_with_padding_that_ends_texts_loads_with_padding_of_its_own(tmp_path: Path) -> None:
    loaded = read(tiny_gguf(tmp_path / "a.gguf"), tmp_path)
    assert loaded.tokenizer.eos_token_id == loaded.model.config.eos_token_id == 257
    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id == 256
    assert [note.split()[0] for note in loaded.notes] == ["a.gguf", "The"]
    assert len(read(tmp_path / "a.gguf", tmp_path).notes) == 1


def test_the_real_gguf_is_converted_whole(smollm2_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder)
    assert not hasattr(model.config, "quantization_config")
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


def test_a_gguf_is_found_as_a_file_or_alone_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF rest")
    assert gguf_in(tmp_path / "a.gguf") == gguf_in(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"GGUF rest")
    with pytest.raises(BadSpec, match=r"several GGUF files; name one: a.gguf, b.gguf"):
        gguf_in(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert gguf_in(tmp_path) is None


def test_a_broken_gguf_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF and then nothing that makes sense" * 10)
    with pytest.raises(BadSpec, match=r"a.gguf cannot be read"):
        converted(tmp_path / "a.gguf", tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
