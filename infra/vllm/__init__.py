"""vLLM servers that a run starts for itself: in an environment of their own, one by one or as replicas under Ray."""
