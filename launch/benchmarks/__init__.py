"""What `python -m launch.benchmark` measures: this project beside what people use today, on this machine."""
