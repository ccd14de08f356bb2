"""Methods: short functions that compose stages."""
