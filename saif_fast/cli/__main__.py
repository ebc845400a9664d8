"""``python -m saif_fast.cli``, for when the console script is not on the path."""

from saif_fast.cli import main

main()
