"""Documents and examples: what they show is run."""
