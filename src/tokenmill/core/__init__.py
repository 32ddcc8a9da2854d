"""What every other layer may use: errors, paths, logging, devices.

Imports nothing of tokenmill, and torch only inside functions.
"""
