"""Networks and what hangs on them: backbones, heads, decoders, and the one reader of weight files."""
