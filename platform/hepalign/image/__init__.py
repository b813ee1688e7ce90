"""Volumes and their place in the world: grids, files, resampling, intensities. World coordinates are RAS millimetres."""
