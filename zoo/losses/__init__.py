"""Losses: one file per loss, each ending in ``SPECS``."""

from zoo.losses.focal_loss import FocalLoss

__all__ = ["FocalLoss"]
