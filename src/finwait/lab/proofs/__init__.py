"""Demonstrations of the claims of the ledger, one module per subject; `catalogue` has them all."""
