"""Models on disk: names, and what their files tell before they are loaded."""
