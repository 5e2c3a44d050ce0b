"""Asking a model, here or behind a server: its answers are drawn, kept as they come, and scored."""
