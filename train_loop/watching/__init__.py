"""What is seen of a run.

`metrics` makes the numbers of an update, `progress` prints them, and `trackers` hands them on. `run_record` reads a
run's folder back; `report` makes a page of it.
"""
