"""The book's pages, made from cards, records, verdicts and notebooks.

Imports everything below; only the command line and the pipeline's last stage call it.
"""
