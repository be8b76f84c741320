"""The performance of runs, with intervals, and report.html."""
