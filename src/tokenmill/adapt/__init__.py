"""Parameter-efficient fine-tuning: what is added to a model's layers, and how it is folded into them."""
