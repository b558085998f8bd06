"""The command line, ``localize-cli``: a file a command. May import every room, and is imported by none.

Only this room prints. Nothing that declarations of commands import loads torch, so that help and completion are quick.
"""
