"""Softmax cross entropy, averaged over rows whatever the class weights sum to."""

from __future__ import annotations


