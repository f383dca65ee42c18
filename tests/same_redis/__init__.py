"""Where the broker's queue and the ledger are in the same Redis, one call claims and pushes."""
