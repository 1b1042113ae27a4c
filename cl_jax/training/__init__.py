"""From a config to a trained State: configs, building, stages, steps, checkpoints, logs."""
