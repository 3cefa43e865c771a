"""Benchmarks of the machinery: `python -m bench.machinery`. Outside of the package, which does not
import it.
"""
