"""Compile: context -> Plan -> LocalGraphModule. Here a method is asked for its plan, and local modules get their code.

May import ``localize.runtime`` and what that may import.
"""
