"""Methods against each other on one model: memory, time and work of a training step, measured in one run."""
