"""Where bytes are kept: local folders, object stores, and a node's cache of them."""
