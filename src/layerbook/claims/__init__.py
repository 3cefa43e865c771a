"""What a paper claims and how each claim is decided: cards, statistics, the engine, discussions.

Imports only the ground floor (paths, yamlfile, ...). Anything above may import it; no measured
number depends on it, but where a notebook uses `stats` to measure.
"""
