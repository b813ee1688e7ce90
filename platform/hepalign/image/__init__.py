"""Volumes and their place in the world: grids, files, resampling, intensities. The world is RAS millimetres."""
