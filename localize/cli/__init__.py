"""The command line, ``localize-cli``, one file per command. May import every room, and no other room imports it.

Only this room prints. The declarations of commands import nothing that loads torch, ``passes.errors`` included:
help took 4.9 s with torch and takes 0.36 s without it (2 cores, torch 2.14), and completion answers a key press.
"""
