"""What tools/dev/kill_runs.py kills: trainings and downloads of seconds, at moments drawn."""
