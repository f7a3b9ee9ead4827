"""Pure functions on `[B, N, H, D]` arrays: most attentions are a thin policy over one of these."""
