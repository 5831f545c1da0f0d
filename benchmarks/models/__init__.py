"""Pretrained chat models out of Python packages: ordinary Hugging Face folders without a model hub."""
