"""Post-training by the same trainer: fine-tuning on dialogues, rewards by rule, GRPO and relatives, distillation."""
