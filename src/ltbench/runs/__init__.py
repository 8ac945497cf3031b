"""What a run does: from a config to a trained model, its checkpoints and its record."""
