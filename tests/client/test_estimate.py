"""`rlhf estimate`: what a person and a program read of it."""

from pathlib import Path

from client import Client
from tests.client.conftest import Shell

SPEC = """
stage:
  type: pretrain
  model: {config: {model_type: llama, hidden_size: 512, num_hidden_layers: 8, num_attention_heads: 8}}
  data: files/none-yet
  batch: 64
  micro_batch: 16
deepspeed: {precision: fp32}
"""


def test_a_person_reads_roles_phases_and_what_to_change(rlhf: Shell, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    spec = str(tmp_path / "spec.yaml")
    said = rlhf("estimate", spec)
    assert said.code == 0, said.err
    for word in ("model", "update", "hand over", "activations", "say --memory"):
        assert word in said.out
    assert rlhf("estimate", spec, "--memory", "500Gi").code == 0
    short = rlhf("estimate", spec, "--memory", "12Gi")
    assert short.code == 1
    assert "The nearest spec that fits" in short.out
    changes = [line.strip() for line in short.out.splitlines() if line.strip().startswith("--set")]
    assert changes
    # What it says to change is what a command takes.
    assert rlhf("estimate", spec, "--memory", "12Gi", *" ".join(changes).split()).code == 0


def test_a_program_reads_json_and_the_client_gives_it_typed(rlhf: Shell, client: Client, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    document = rlhf("estimate", str(tmp_path / "spec.yaml"), "--set", "stage.micro_batch=1", "--json").json
    spec = {"stage": {"type": "pretrain", "data": "files/x", "micro_batch": 1, "batch": 64}}
    config = {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
    typed = client.estimate(
        {**spec, "stage": {**spec["stage"], "model": {"config": config}}} | {"deepspeed": {"precision": "fp32"}}
    )
    assert typed.peak == document["peak"] == max(phase.total for phase in typed.phases)
