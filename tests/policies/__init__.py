"""Policies as pure decisions."""
