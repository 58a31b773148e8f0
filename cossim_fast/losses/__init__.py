"""Contrastive losses of embeddings that never make the matrix of their similarities."""

from cossim_fast.losses.info_nce import InfoNCE, info_nce
from cossim_fast.losses.siglip import SigLipLoss, siglip

__all__ = ["InfoNCE", "SigLipLoss", "info_nce", "siglip"]
