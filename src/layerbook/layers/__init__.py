"""Looking into a network: its sites, interventions, curvature, probes.

Imports nothing else of this package. Methods, quantizers and networks import it.
"""
