"""Cases and cohorts: what is on disk, how it came there, and what a network is fed from it."""
