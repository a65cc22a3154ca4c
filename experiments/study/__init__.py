"""Studies of compare.py: small Python files with a ``STUDY``, and what they are made of."""
