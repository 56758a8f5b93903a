"""What the `apikeyrouter` command does, one command a file. `cli.py` parses; here is the work."""
