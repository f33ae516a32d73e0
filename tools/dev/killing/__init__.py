"""What tools/dev/kill_runs.py kills: trainings that take seconds, at moments that are drawn."""
