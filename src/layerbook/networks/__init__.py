"""Small networks trained here, one module or a few each, and the training that they share.

Imports data and layers. Methods and the families' pages import it; quantizers do not.
"""
