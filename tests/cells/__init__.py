"""Several cells, and the money that is moved between them."""
