"""Suites of runs, and the leaderboard computed from their records. Torch is not imported here."""
