"""Small networks trained here: what each is and how a paper reads it, one module or a few each;
the training that they share; and, apart from both, how they are made (`making`, `recipes`).

Imports data and layers. Methods and the families' pages import it; quantizers do not. No paper
imports `making` or `recipes`, but for ast-probe, which trains a larger network itself at the gpu tier.
"""
