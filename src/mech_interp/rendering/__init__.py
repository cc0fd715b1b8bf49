"""Renderers of views: `terminal` draws text with rich, `figure` draws PNG with matplotlib.

They know views and nothing else. Import the one that is needed: rich and matplotlib take time to load.
"""

from __future__ import annotations
