"""Jobs: the loop, checkpoints, run directories, metrics, whole evaluations."""
