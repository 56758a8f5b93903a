"""Speed, measured: `make bench`. CPU time per request, medians of interleaved runs, proven by counts."""
