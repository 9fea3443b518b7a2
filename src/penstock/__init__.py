"""Penstock: language-model generation on memory that is too small for it."""
