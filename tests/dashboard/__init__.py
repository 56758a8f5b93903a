"""The operator's page, driven in a real browser."""
