"""What tools/dev/long_runs.py trains for long, and what it looks at meanwhile."""
