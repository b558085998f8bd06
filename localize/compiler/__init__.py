"""Context -> Plan -> LocalGraphModule: asks the method, wires the modules, emits their code.

May import ``localize.runtime`` and what that may import.
"""
