"""What a notebook talks to: the run that takes its measurements, tables, plots.

Imports claims, data and models. Only notebooks, the pipeline and the pages import it.
"""
