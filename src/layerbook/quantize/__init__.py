"""Quantization: grids, ranges, formats, rotations, GPTQ, BiLLM, counting bits, sweeps over layers.

Imports layers and data. Methods and the families' pages import it; networks do not.
"""
