"""Raw assets and what is made of them: the manifest, fetching, preparing, and the loaders that
notebooks and networks use.

Imports only the ground floor. Families, networks, notebooks and the pipeline import it.
"""
