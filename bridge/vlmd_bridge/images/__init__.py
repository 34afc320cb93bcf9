"""Image processes: pictures opened, hashed, decoded and resized away from the daemon."""
