"""Looking at a mask file: what it holds, pictures, checks, scores."""
