"""Triton kernels of cossim_fast, installed as ``cossim_fast.kernels``."""
