"""Placement and migration of KV on a fast memory and an external one, replayed byte by byte beside a bound."""
