"""What generative methods share: sampling, judges, sample grids."""
