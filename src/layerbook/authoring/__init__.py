"""What the author of a paper uses: the scaffold of a new one, and the conventions that it is held
against.

Imports everything below; only the command line calls it.
"""
