"""`hapicl compare`: initialisations x label fractions x seeds, and a verdict with intervals."""
