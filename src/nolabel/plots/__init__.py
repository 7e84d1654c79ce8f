"""Pictures of what a backbone sees: tensors in, Pillow images out."""

from nolabel.plots.attention import attention_maps, attention_sheet, prepare, similarity_map, snapshot, upsample
from nolabel.plots.clip import attention_clip, clip_frames
from nolabel.plots.colors import CATEGORICAL, colormap
from nolabel.plots.matches import matches_sheet, show_matches
from nolabel.plots.pca import Basis, pca_basis, pca_rgb, pca_sheet

__all__ = [
    "CATEGORICAL",
    "Basis",
    "attention_clip",
    "attention_maps",
    "attention_sheet",
    "clip_frames",
    "colormap",
    "matches_sheet",
    "pca_basis",
    "pca_rgb",
    "pca_sheet",
    "prepare",
    "show_matches",
    "similarity_map",
    "snapshot",
    "upsample",
]
