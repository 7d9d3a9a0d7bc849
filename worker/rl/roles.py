"""The models of a PPO, each on its own engine: the actor, the critic, the reference and the reward models."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from worker.context import Context
from worker.contract.parts import DeepSpeed
from worker.contract.ppo import PpoStage, Role
from worker.contract.rewards import ModelTerm
from worker.contract.spec import JobSpec, learning_rate_of
from worker.distributed import Ranks
from worker.engine import Compute, Engine, Setting
from worker.errors import BadSpec
from worker.lora import with_adapters
from worker.models import DTYPES, Loaded, check_length, checkpointed, pretrained
from worker.rl.frozen import Frozen
from worker.rl.objectives import policy_sums, value_sums
from worker.scores import reward_model, value_model
