"""Import of Hugging Face transformers' checkpoint folders."""
