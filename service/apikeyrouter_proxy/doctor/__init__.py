"""What is wrong with a deployment, and what to do about it: for `apikeyrouter doctor` and for a running service.

`examination` asks, `store` and `loss` look into the server, `findings` is what they say. Imported when somebody asks.
"""
