"""Memory of the KV cache: the ledger of slots, eviction and shared prefixes."""
