"""How each small network of this project is trained and examined, one module for each.

Every module says `NETWORK = Network(...)`. Papers read what these leave in results/models and
import none of them.
"""
