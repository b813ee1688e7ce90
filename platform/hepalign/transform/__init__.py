"""Displacement fields and linear transforms: `warped(x) = moving(x + u(x))`, in millimetres of the world (RAS)."""
