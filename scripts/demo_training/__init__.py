"""How the demo model is made: frames, tokenizer, prompts, training, evaluation."""
