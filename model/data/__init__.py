"""Training data: shards of builds and official files, read at random, mixed, and made into batches."""
