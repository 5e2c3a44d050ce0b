"""Recipes against one another: the same start, data, budget and seeds, and honest statistics of what came out."""
