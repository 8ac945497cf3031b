"""Callbacks of a training: its record, predictions, progress bar and warnings."""
