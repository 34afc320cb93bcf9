"""Answers held to a form: grammars for llguidance, and budgets that close them in time."""
