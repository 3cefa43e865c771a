"""From notebooks to evidence: what a result depends on, records, verdicts, DVC's stages, running,
kernels, clusters.

Imports everything below. The pages, the authors' tools and the command line import it.
"""
