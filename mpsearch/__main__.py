"""`python -m mpsearch`."""

from mpsearch.cli import main

main()
