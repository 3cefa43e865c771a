"""What the papers of one family have in common and are compared by: layer scores, recipes, one
model for all.

Imports quantizers, networks, data and claims. The pipeline and the pages import it.
"""
