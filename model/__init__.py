"""The video language model trained on the shards."""
