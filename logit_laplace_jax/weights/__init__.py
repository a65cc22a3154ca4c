"""Formats of weights: OpenAI's published files, state dicts, safetensors."""
