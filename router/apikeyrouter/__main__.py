"""`python -m apikeyrouter`: the command line."""

from apikeyrouter.cli import main

if __name__ == "__main__":
    main()
