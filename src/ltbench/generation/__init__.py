"""What the generative methods share: losses, class balance, judges, metrics and samples."""
