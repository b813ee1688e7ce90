"""The networks, plain torch modules without training or file code."""
