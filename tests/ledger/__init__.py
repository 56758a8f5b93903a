"""Proofs of the accounting."""
