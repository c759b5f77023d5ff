"""Images: a registry of data sets by name, each of which becomes uint8 pixels in memory."""
