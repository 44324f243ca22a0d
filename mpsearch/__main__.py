"""`python -m mpsearch`."""

from mpsearch.cli.main import main

main()
