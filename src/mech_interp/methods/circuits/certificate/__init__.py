"""The certificate: every circuit method scored on models whose circuit is known, and on nulls.

Import the module that is needed; torch takes time to load.
"""

from __future__ import annotations
