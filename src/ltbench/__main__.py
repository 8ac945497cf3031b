"""``python -m ltbench`` is the same as ``ltbench``."""

from ltbench.cli import main

main()
