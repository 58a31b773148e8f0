"""Contrastive losses of embeddings that never make the matrix of their similarities."""

from cossim_fast.losses.batch_hard_triplet import BatchHardTripletLoss, batch_hard_triplet
from cossim_fast.losses.clip import ClipLoss, clip
from cossim_fast.losses.info_nce import InfoNCE, info_nce
from cossim_fast.losses.nt_xent import NTXentLoss, nt_xent
from cossim_fast.losses.siglip import SigLipLoss, siglip
from cossim_fast.losses.sup_con import SupConLoss, sup_con

__all__ = [
    "BatchHardTripletLoss",
    "ClipLoss",
    "InfoNCE",
    "NTXentLoss",
    "SigLipLoss",
    "SupConLoss",
    "batch_hard_triplet",
    "clip",
    "info_nce",
    "nt_xent",
    "siglip",
    "sup_con",
]
