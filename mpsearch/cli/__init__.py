"""The command line: its options, its commands, and what errors become."""
