"""Checkpoint folders of Hugging Face transformers, made into ours."""
