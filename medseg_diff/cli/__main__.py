"""``python -m medseg_diff.cli``."""

from medseg_diff.cli.main import main

main()
