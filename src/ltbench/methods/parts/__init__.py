"""What several methods share: how a run starts, what of a network learns, held-out objectives."""
