"""The training loop: plain torch, one process or many, started by anything that sets up a process group."""
