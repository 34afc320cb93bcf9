"""The documents: their commands run, their tables agree with the code."""
