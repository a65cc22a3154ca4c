"""Measures of reconstructions and of the codes, baselines, pictures."""
