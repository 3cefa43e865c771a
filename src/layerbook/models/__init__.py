"""Whether a checkpoint is fit for a method: files and headers, layout, tokenizer, what the method
needs.

Imports data and layers; a run asks it before anything is computed.
"""
