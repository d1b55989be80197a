"""Files: written whole or not at all, keyed, leased and mirrored; events and progress."""

from harness.storage.store import DamagedFile, Store, StoreError

__all__ = ["DamagedFile", "Store", "StoreError"]
