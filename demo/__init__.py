"""Both stages on a small image folder made offline: what `hapicl demo` runs."""
