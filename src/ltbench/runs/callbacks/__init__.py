"""What follows a training as it goes."""
