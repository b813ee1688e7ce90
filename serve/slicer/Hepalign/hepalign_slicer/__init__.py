"""What the Slicer module does, without Slicer: runs in Slicer's Python, which has no Hepalign installed."""
