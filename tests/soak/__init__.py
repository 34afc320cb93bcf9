"""Long runs: each is a command with its duration as an option, and a miniature of a minute or less that CI runs."""
