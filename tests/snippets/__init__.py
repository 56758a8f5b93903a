"""The calls that the project's founding documents show, each in a test of its own."""
