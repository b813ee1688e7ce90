"""The losses of the three stages; each returns named terms in float32."""
