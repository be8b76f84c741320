"""What runs are worth, with intervals, and report.html."""
