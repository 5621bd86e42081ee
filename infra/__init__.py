"""Where things run and rest: video decoding, weights, lake, Ray pool, synthetic clips."""
