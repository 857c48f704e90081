"""Noising processes and their reversal: paths, parameterisations, samplers, objectives.

Nothing here knows a network, a task or a file.
"""
