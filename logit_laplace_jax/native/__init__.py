"""The mean loss for CPUs in C, built on first use where there is a compiler."""
