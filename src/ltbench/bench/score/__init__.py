"""What came of a suite: results, statistics, claims."""
