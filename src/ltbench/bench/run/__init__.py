"""Running a suite: what its jobs are, and how they are started."""
