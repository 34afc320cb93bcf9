"""What the daemon does for a request: jobs, and the one queue they share."""
