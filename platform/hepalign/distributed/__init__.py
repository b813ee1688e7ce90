"""The only Ray Train and Ray Tune code."""
