"""What runs are worth; report.html."""
