"""`python -m mpsearch`."""

from mpsearch.cli.commands import main

main()
