"""The way of one request below the router's facade: admission, attempts, streams, bookkeeping, housekeeping."""
