"""Learning from what people preferred: dpo, orpo and kto, without a reward model."""
