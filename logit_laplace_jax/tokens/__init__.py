"""Images to tokens and back: the tokenizer, pixel ranges, token files, jobs over many images."""

from logit_laplace_jax.tokens.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
