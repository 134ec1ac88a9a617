"""Is this model the original's? Its outputs, beside arrays that the original code wrote (docs/parity.md)."""
