"""Skip traces: which tokens each step of a decode passes over at each layer, in memory and on disk."""
