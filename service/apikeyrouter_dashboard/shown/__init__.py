"""Answers of the management API as they are shown: pure functions, HTML and chart options out."""
