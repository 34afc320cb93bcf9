"""The rows of a batch: what prefills and decodes them, and how they share memory."""
