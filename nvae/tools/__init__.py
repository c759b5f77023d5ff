"""What a person sees and touches: pictures, windows, animations, picking."""
