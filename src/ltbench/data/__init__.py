"""Data = source x profile x split."""
