"""From one dialect to another, by the rules of `providers.md` §6.

OpenAI's chat is the hub: every dialect is translated to and from it. What both sides can say comes through unchanged;
what changes no answer's shape (sampling knobs, hints) is left out where the other side has no word for it; what would
change the answer is refused by name, so that nobody gets something else than they asked for.
"""
