"""Losses: one file per loss, each ending in ``SPECS``. :func:`zoo.create_loss` builds any of them by name."""

from zoo.losses.focal_loss import FocalLoss

__all__ = ["FocalLoss"]
